"""Fitting each kind of network: loops, caches, augmentation, warm start."""
