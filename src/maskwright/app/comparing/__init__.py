"""Runs side by side: which they are, what joins them, their figures, and the page and table that show them."""
