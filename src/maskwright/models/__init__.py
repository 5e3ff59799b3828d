"""What sees: backbones with dense features, segmenters, the saved bundle."""
