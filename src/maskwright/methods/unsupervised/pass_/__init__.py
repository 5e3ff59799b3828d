"""PASS: the method, its network, and its gate."""
