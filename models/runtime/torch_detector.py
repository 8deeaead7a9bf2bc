"""Scores images with a version's network in torch on a GPU; the only module of scoring that brings torch.

Images go through in batches of one fixed size, filled up with black: the same kernels run every time, so that an
image's score does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from models.detector import Detector, Float32Array, Scored, UInt8Array, check_images
from models.registry import ModelVersion
from models.runtime.load_network import CannotRebuild, network_of

BATCH_SIZE = 16
PROBES = 8
# Of the threshold, as for drafts: a verdict that hangs on less hangs on the camera's noise.
TOLERANCE = 0.01
_WARM_UP_RUNS = 3


class GpuUnusable(Exception):
    """The GPU cannot score this version as its graph on the CPU does; the message says why."""


class TorchDetector(Detector):
    """The detector of one version on one device; call it from one thread at a time."""

    def __init__(self, version: ModelVersion, device: str = "cuda", *, half: bool = False) -> None:
        """Rebuild the network of `version` on `device`; with `half`, and CUDA, most of it runs in float16.

        Raises CannotRebuild, and what torch raises where the device does not do.
        """
        self.input_size = version.input_size
        self._device = torch.device(device)
        self._half = half and self._device.type == "cuda"
        self._network = network_of(version).to(self._device).to(memory_format=torch.channels_last)
        self._images = torch.zeros((BATCH_SIZE, *self.input_size, 3), dtype=torch.uint8, device=self._device)
        self._run = self._captured() if self._device.type == "cuda" else self._forward

    def score(self, images: UInt8Array) -> Scored:
        """Score `images` as `Detector.score` says."""
        check_images(images, self.input_size)
        scores, maps = [], []
        for start in range(0, len(images), BATCH_SIZE):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH_SIZE]))
            self._images[: len(part)].copy_(part)
            self._images[len(part) :].zero_()
            score, anomaly_map = self._run()
            scores.append(_on_cpu(score[: len(part)]))
            maps.append(_on_cpu(anomaly_map[: len(part)]))
        return Scored(np.concatenate(scores), np.concatenate(maps))

    def _forward(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), self._precision():
            score, anomaly_map = self._network(self._images)
        return score, anomaly_map

    def _precision(self) -> AbstractContextManager[object]:
        # The cache of cast weights must not be made within a CUDA graph, whose memory is used again.
        return torch.autocast("cuda", torch.float16, cache_enabled=False) if self._half else nullcontext()

    def _captured(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return the forward pass as a CUDA graph: one launch instead of hundreds."""
        beside: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP_RUNS):
                self._forward()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._forward()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return results

        return replay


def on_gpu(version: ModelVersion, reference: Detector) -> TorchDetector:
    """Return the detector of `version` on the first GPU, in float16 where that does, else in float32.

    Its scores of made images are within a hundredth of the threshold of those of `reference`, the graph that
    ships and by which it was calibrated. Raises GpuUnusable where neither is, or where there is no GPU to use.
    """
    if not torch.cuda.is_available():
        raise GpuUnusable("torch finds no CUDA device")
    tried = []
    for half in (True, False):
        try:
            detector = TorchDetector(version, half=half)
            difference = score_difference(version, detector, reference)
        except (RuntimeError, CannotRebuild) as error:
            tried.append(str(error))
            continue
        if difference <= TOLERANCE:
            return detector
        tried.append(f"scores differ by {difference:.3g} of the threshold in {'float16' if half else 'float32'}")
    raise GpuUnusable("; ".join(tried))


def score_difference(version: ModelVersion, one: Detector, other: Detector) -> float:
    """Return the largest difference of scores of made images, in units of the threshold or of the score if larger."""
    scores, others = (detector.score(probes(version.input_size)).scores.astype(np.float64) for detector in (one, other))
    threshold = version.manifest.calibration.threshold
    spread = threshold - float(np.median(version.calibration_scores))
    unit = np.maximum(max(abs(threshold), spread, 1e-12), np.abs(others))
    worst = float((np.abs(scores - others) / unit).max())
    return worst if np.isfinite(worst) else float("inf")


def probes(input_size: tuple[int, int]) -> UInt8Array:
    """Return made images, uint8 `(8, H, W, 3)`, from plain to rough, always the same."""
    height, width = input_size
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, height)[:, None, None] * 0.5 + np.linspace(0, 255, width)[None, :, None] * 0.5
    rough = [ramp + rng.normal(0, 4.0 * index, (height, width, 3)) for index in range(PROBES)]
    return np.clip(np.stack(rough), 0, 255).astype(np.uint8)


def _on_cpu(tensor: Tensor) -> Float32Array:
    # `numpy` of a tensor on the CPU is a view of it, and the next batch may be written there.
    found: Float32Array = tensor.to("cpu", torch.float32).numpy().copy()
    return found
