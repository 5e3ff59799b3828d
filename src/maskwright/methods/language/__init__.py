"""Methods for captions and class names."""
