"""Proposals for photographs: made by a stage, and kept for other runs."""
