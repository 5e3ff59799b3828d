"""What methods share whose classes are words."""
