"""Training passes of what torch is slow at on a processor."""
