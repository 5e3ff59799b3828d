"""Methods that read no label."""
