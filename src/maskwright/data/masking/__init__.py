"""Masks: what stored values mean."""
