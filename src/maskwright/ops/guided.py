"""Temporary."""


def guided_filter(x, image, radius=8, eps=1e-3, subsample=1):
    return x


def guided_refine(p, image, **k):
    return p
