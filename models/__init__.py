"""Detectors: what they are, how they are trained, calibrated, judged and kept.

This package knows tensors and files and nothing of the service: no database, no settings, no folders
under watch. Importing it has no effect and does not import torch.
"""
