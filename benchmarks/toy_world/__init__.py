"""A world small enough to learn on a processor: scenes of coloured shapes with captions, and two towers of its own."""
