"""What comes out: whole-image and tiled prediction, refinement, writers."""
