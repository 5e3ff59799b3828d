"""CycleGAN and CyCADA: photographs of the source in the target's look, and features that do not tell which is which."""
