"""What people look at: the run report, and runs side by side."""
