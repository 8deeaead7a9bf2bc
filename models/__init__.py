"""Detectors: what they are, how they are trained, calibrated and judged.

Knows tensors and files, nothing of the service: no database, no settings. Importing it has no effect and does not
import torch.
"""
