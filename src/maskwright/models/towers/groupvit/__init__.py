"""GroupViT's pair of towers: an image tower that sorts patches into groups, and a text tower."""
