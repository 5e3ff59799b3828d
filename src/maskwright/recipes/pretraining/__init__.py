"""Pretraining an encoder without labels."""
