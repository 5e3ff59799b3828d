"""What a family of methods shares, built on the engine."""
