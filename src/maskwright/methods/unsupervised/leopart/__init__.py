"""Leopart: the method, its options, its loss, its network and training, its foreground and its communities."""
