"""Masks that follow the photograph's edges."""
