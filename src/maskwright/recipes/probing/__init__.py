"""Judging an encoder with labels."""
