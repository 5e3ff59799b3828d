"""Data sets: what lies where."""
