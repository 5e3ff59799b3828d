"""Training a segmentation network on labels."""
