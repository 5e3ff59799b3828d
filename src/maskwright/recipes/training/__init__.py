"""Training a segmentation network, on labels or without."""
