"""MaskContrast: the method, its losses, its pairs of views and its training."""
