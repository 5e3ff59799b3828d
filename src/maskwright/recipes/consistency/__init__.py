"""Labelled and unlabelled photographs side by side."""
