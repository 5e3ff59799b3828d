"""Looking Beyond Single Images: the method, its options, its labels, its loss and its training."""
