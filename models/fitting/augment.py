"""Changes of an image that leave a normal part normal.

Small changes of light are always made: no lamp is constant. The others are made only where held-out normal images look
as normal to the detector after them as before, so that a part mounted the wrong way stays a defect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from models.detector import Float32Array, UInt8Array

Change = Callable[[UInt8Array, np.random.Generator], UInt8Array]

# Changed normals count as normal when half of them score below this quantile of the unchanged ones.
AS_NORMAL_AS = 0.75
SHIFT_SHARE = 0.04
TURN_DEGREES = 10.0


def light(image: UInt8Array, rng: np.random.Generator, amount: float = 0.04) -> UInt8Array:
    """Another brightness, contrast and, where there is colour, colour of the light, each by up to about `amount`."""
    gain, gamma = math.exp(rng.uniform(-amount, amount)), math.exp(rng.uniform(-amount, amount))
    grey = bool((image[..., 0] == image[..., 1]).all())
    hue = np.ones(3) if grey else np.exp(rng.uniform(-amount / 2, amount / 2, 3))
    levels = 255 * np.linspace(0, 1, 256)[:, None] ** gamma * gain * hue
    table = np.clip(levels, 0, 255).round().astype(np.uint8)
    changed = np.empty_like(image)
    for colour in range(3):
        changed[..., colour] = table[image[..., colour], colour]
    return changed


def other_light(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Light as different as from one hour to another."""
    return light(image, rng, 0.2)


def shifted(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Moved by up to 4 % of its sides; what comes in is the mirror image of the edge."""
    height, width = image.shape[:2]
    down, right = (round(rng.uniform(-SHIFT_SHARE, SHIFT_SHARE) * side) for side in (height, width))
    top, left = abs(down) + down, abs(right) + right
    return np.ascontiguousarray(_padded(image, abs(down), abs(right))[top : top + height, left : left + width])


def mirrored(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Left and right exchanged, in one of two images."""
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image


def upside_down(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Turned by 180 degrees, in one of two images."""
    return np.ascontiguousarray(image[::-1, ::-1]) if rng.random() < 0.5 else image


def turned(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Turned by up to 10 degrees about its middle; what comes in is the mirror image of the edge."""
    height, width = image.shape[:2]
    margin = math.ceil(math.hypot(height, width) * math.sin(math.radians(TURN_DEGREES)) / 2) + 1
    margin = min(margin, height - 1, width - 1)
    angle = rng.uniform(-TURN_DEGREES, TURN_DEGREES)
    whole = Image.fromarray(_padded(image, margin, margin)).rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(whole.crop((margin, margin, margin + width, margin + height)))


OPTIONAL: Mapping[str, Change] = {
    "other light": other_light,
    "shifted": shifted,
    "mirrored": mirrored,
    "upside down": upside_down,
    "turned": turned,
}


def harmless(
    images: Sequence[UInt8Array], score: Callable[[Sequence[UInt8Array]], Float32Array], seed: int
) -> list[str]:
    """Return the names of the `OPTIONAL` changes after which held-out normal `images` look as normal as before.

    `score` gives `(n,)` of n images, higher being more unusual.
    """
    limit = float(np.quantile(score(images), AS_NORMAL_AS))
    rng = np.random.default_rng([seed, 3])
    found = []
    for name, change in OPTIONAL.items():
        # Only images that a change has changed count.
        changed = [(change(image, rng), image) for image in images]
        made = [after for after, before in changed if after is not before]
        if made and float(np.median(score(made))) <= limit:
            found.append(name)
    return found


def vary(image: UInt8Array, names: Sequence[str], rng: np.random.Generator) -> UInt8Array:
    """Return `image` in slightly other light, with each of the changes `names` in one of two cases."""
    for name in names:
        if rng.random() < 0.5:
            image = OPTIONAL[name](image, rng)
    return light(image, rng)


def _padded(image: UInt8Array, rows: int, columns: int) -> UInt8Array:
    """Return `image` with so many rows and columns more on each side, the mirror image of the edge."""
    return np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="reflect")
