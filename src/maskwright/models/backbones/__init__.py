"""Networks that see: dense features, official weights."""
