"""Dense features of a frozen backbone, clustered."""
