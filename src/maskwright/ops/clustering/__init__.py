"""Clustering and low-dimensional structure of rows."""
