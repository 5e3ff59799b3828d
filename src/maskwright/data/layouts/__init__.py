"""Readers that present official benchmark folders as datasets."""
