"""A network labels, another learns from its labels."""
