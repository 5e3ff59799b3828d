"""STEGO, ICLR 2022: distilled feature correspondences."""
