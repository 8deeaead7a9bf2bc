"""Maps: an anomaly map drawn over its picture, for people to see where the detector looked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.detector import Float32Array, UInt8Array

# Transparent below half the pixel threshold, yellow at it, red at three times it.
_FADE_FROM = 0.5
_FULL_AT = 3.0
_OPACITY = 0.65


def overlay(image: UInt8Array, anomaly_map: Float32Array, pixel_threshold: float) -> UInt8Array:
    """Return `image`, uint8 `(H, W, 3)`, with `anomaly_map`, float32 `(h, w)`, drawn over it.

    The map is in units of `pixel_threshold`: what normal pictures reach shows nearly nothing.
    """
    height, width = image.shape[:2]
    relative = np.asarray(
        Image.fromarray(anomaly_map / np.float32(max(pixel_threshold, 1e-12)), "F").resize(
            (width, height), Image.Resampling.BICUBIC
        )
    )
    strength = np.clip((relative - _FADE_FROM) / (_FULL_AT - _FADE_FROM), 0, 1)[..., None]
    colour = np.concatenate([np.full_like(strength, 255.0), 220.0 * (1 - strength), np.zeros_like(strength)], axis=2)
    opacity = _OPACITY * np.sqrt(strength)
    return np.rint(image * (1 - opacity) + colour * opacity).astype(np.uint8)


def save_overlay(path: Path, drawn: UInt8Array) -> None:
    """Write `drawn`, uint8 `(H, W, 3)`, as the PNG `path`, whole or not at all."""
    partial = path.with_name(f".tmp.{path.name}")
    Image.fromarray(drawn).save(partial, "PNG", compress_level=1)
    partial.replace(path)
