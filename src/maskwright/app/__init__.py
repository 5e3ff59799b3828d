"""What people look at: the run report and the demo."""
