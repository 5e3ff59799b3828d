"""What judges: confusion, matching, metrics, protocols."""
