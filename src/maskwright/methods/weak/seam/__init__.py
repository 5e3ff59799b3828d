"""SEAM: the method, and its network with the pixel correlation module."""
