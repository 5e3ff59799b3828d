"""Affinities between places of an image, and what follows from them."""
