"""What can go wrong with detectors, as types; each message names the thing, what was expected and what was found."""

from __future__ import annotations


class ModelError(Exception):
    """Base of all errors that `models` raises on purpose."""


class TooFewImages(ModelError):
    """There are not enough normal images to train, or to calibrate at the asked false-alarm rate."""


class NoAnomalyScores(ModelError):
    """A threshold policy weighs known anomalies, and the model's calibration has none."""


class ModelCorrupt(ModelError):
    """A version's folder is not what was registered: a file is missing, or its hash differs."""


class ParityFailed(ModelError):
    """The exported graph does not score like the network it was made from."""


class DatasetError(ModelError):
    """A folder of images does not have a layout that can be read, or lacks what was asked of it."""


class MemoryExceeded(ModelError):
    """A training needs more memory than it is allowed."""


class BackboneUnavailable(ModelError):
    """The weights of a pretrained network are neither here nor within reach, or are not those of that network."""
