"""ToCo: the method, and its network with two classifiers and a segmentation branch."""
