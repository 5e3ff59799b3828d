"""The parts that a saved segmenter may name."""
