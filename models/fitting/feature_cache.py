"""Runs the frozen part of the detector over images, on OpenVINO, and keeps what the networks are trained on: a bounded
sample of positions for the autoencoder, crops around drawn defects for the head.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.detector import Float32Array, UInt8Array
from models.networks.backbone import DETAIL, FEATURES, OVERVIEW, STRIDE
from models.progress import Progress
from models.runtime.export import converted
from models.runtime.openvino_runtime import allowed_cores, compile_for_cpu, queue_of

POOL_BYTES = 600_000_000
CROP_SIDE = 24  # positions
KEPT = FEATURES + DETAIL  # channels of the extractor
SEEN = 2 * FEATURES + DETAIL  # channels that the head sees

Take = Callable[..., None]
"""Gets an image's number and the network's outputs for it, each a float32 array, as they come."""


class FrozenNetwork:
    """A network for images of one size, run image by image."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        """Compile `network`, in eval mode, for images of `size`, height and width in pixels."""
        self.size = size
        self._queue = queue_of(compile_for_cpu(converted(network, size)), allowed_cores())

    def run(self, images: Iterable[UInt8Array], take: Take) -> None:
        """Give `take` the outputs for each image, in any order; the arrays are reused after it returns."""

        def keep(request: Any, index: int) -> None:
            take(index, *(tensor.data[0] for tensor in request.output_tensors))

        self._queue.set_callback(keep)
        for index, image in enumerate(images):
            self._queue.start_async({0: image[np.newaxis]}, index)
        self._queue.wait_all()

    def first_outputs(
        self, images: Iterable[UInt8Array], value: Callable[[Float32Array], Any] = np.copy
    ) -> Float32Array:
        """Return `value` of the first output for each image, stacked."""
        found: dict[int, Any] = {}

        def take(index: int, output: Float32Array, *_: Float32Array) -> None:
            found[index] = value(output)

        self.run(images, take)
        return np.stack([found[index] for index in range(len(found))])


def position_pool(
    network: FrozenNetwork,
    images: Iterable[UInt8Array],
    count: int,
    seed: int,
    report: Callable[[Progress], None],
    pool_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Return features of as many random positions of each of `count` images, float16 `(n, 312)` of at most
    `pool_bytes`, and their overviews, float32 `(count, 472)`.
    """
    positions = network.size[0] * network.size[1] // STRIDE**2
    each = max(1, min(positions, pool_bytes // (count * KEPT * 2)))
    pool = np.empty((count, each, KEPT), dtype=np.float16)
    overviews = np.empty((count, OVERVIEW), dtype=np.float32)

    def take(index: int, places: Float32Array, overview: Float32Array) -> None:
        drawn = np.random.default_rng([seed, index]).permutation(positions)[:each]
        pool[index] = places.reshape(KEPT, positions)[:, drawn].T
        overviews[index] = overview

    network.run(reporting(images, count, "features", report), take)
    return torch.from_numpy(pool.reshape(-1, KEPT)), torch.from_numpy(overviews)


@dataclass(frozen=True)
class Crops:
    """Crops of what the head sees, float16 `(n, 488, h, w)`, and how much of each position is defect, `(n, h, w)`."""

    seen: Tensor
    defect_share: Tensor


def crop_pool(
    network: FrozenNetwork,
    images: Iterable[tuple[UInt8Array, Float32Array]],
    count: int,
    crops_each: int,
    seed: int,
    report: Callable[[Progress], None],
) -> Crops:
    """Return `crops_each` crops of up to 24x24 positions of each of `count` images, which come with each position's
    share of defect.

    Where there is a defect, three in four crops hold one, at any place in the crop.
    """
    rows, columns = (side // STRIDE for side in network.size)
    height, width = min(CROP_SIDE, rows), min(CROP_SIDE, columns)
    seen = np.empty((count * crops_each, SEEN, height, width), dtype=np.float16)
    shares = np.empty((count * crops_each, height, width), dtype=np.float32)
    defects: dict[int, Float32Array] = {}

    def only_images() -> Iterable[UInt8Array]:
        for index, (image, share) in enumerate(images):
            defects[index] = share
            yield image

    def take(index: int, places: Float32Array, overview: Float32Array) -> None:
        share, rng = defects.pop(index), np.random.default_rng([seed, index])
        where = np.argwhere(share > 0)
        for number in range(index * crops_each, (index + 1) * crops_each):
            top, left = _crop(where, (rows - height, columns - width), (height, width), rng)
            seen[number] = places[:, top : top + height, left : left + width]
            shares[number] = share[top : top + height, left : left + width]

    network.run(reporting(only_images(), count, "drawing defects", report), take)
    return Crops(torch.from_numpy(seen), torch.from_numpy(shares))


def hardest_crops(
    network: FrozenNetwork,
    head: Callable[[Tensor], Tensor],
    images: Sequence[UInt8Array],
    most: int,
    report: Callable[[Progress], None],
) -> Crops:
    """Return crops around what `head` takes most for a defect in normal `images`, of at most `most` images.

    `head` takes float32 `(1, 488, h, w)` and returns `(1, 1, h, w)`.
    """
    height, width = (min(CROP_SIDE, side // STRIDE) for side in network.size)
    kept: list[tuple[float, int, Tensor]] = []

    def take(index: int, places: Float32Array, overview: Float32Array) -> None:
        seen = torch.from_numpy(places)[None]
        with torch.inference_mode():
            logits = head(seen)[0, 0]
        row, column = divmod(int(logits.argmax()), logits.shape[1])
        top = min(max(row - height // 2, 0), logits.shape[0] - height)
        left = min(max(column - width // 2, 0), logits.shape[1] - width)
        crop = seen[0, :, top : top + height, left : left + width].half()
        # Ties go by image, as results come in any order.
        heapq.heappush(kept, (float(logits.max()), -index, crop))
        if len(kept) > most:
            heapq.heappop(kept)

    network.run(reporting(images, len(images), "looking for false alarms", report), take)
    crops = torch.stack([crop for _, _, crop in sorted(kept, key=lambda entry: entry[:2])])
    return Crops(crops, torch.zeros(len(crops), height, width))


def _crop(
    where: npt.NDArray[np.int64], last: tuple[int, int], size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """Return top and left of a crop of `size` that begins at `last` at the latest."""
    if len(where) and rng.random() < 0.75:
        middle = where[int(rng.integers(len(where)))]
        starts = [int(at - rng.integers(0, side)) for at, side in zip(middle, size, strict=True)]
        return min(max(starts[0], 0), last[0]), min(max(starts[1], 0), last[1])
    return int(rng.integers(0, last[0] + 1)), int(rng.integers(0, last[1] + 1))


def reporting(
    images: Iterable[UInt8Array], count: int, stage: str, report: Callable[[Progress], None]
) -> Iterable[UInt8Array]:
    """Yield `images`, of which there are `count`, and report each as done."""
    for done, image in enumerate(images, start=1):
        yield image
        report(Progress(stage, done, count))
