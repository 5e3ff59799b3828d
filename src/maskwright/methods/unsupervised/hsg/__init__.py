"""HSG, CVPR 2022: segments of two views, grouped from fine to coarse."""
