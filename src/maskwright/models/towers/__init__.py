"""Image and text in one space: towers of CLIP's kind, prompts, and vocabularies of class names."""
