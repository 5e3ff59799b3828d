"""Methods for image tags."""
