"""What runs it: the one loop, stages, devices, resume, feature cache, run records and the label ledger."""
