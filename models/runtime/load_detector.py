"""Loads the detector of a version: its OpenVINO graph on the CPU, by which it was calibrated, or its network on a GPU
where one is found and says the same.

Without a GPU neither torch nor CUDA is loaded.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from models.detector import Detector
from models.registry import ModelVersion
from models.runtime.openvino_detector import CompiledGraphs, OpenVinoDetector

log = logging.getLogger(__name__)

_DEVICES = Path("/dev")


def load_detector(version: ModelVersion, threads: int = 0, kept: CompiledGraphs | None = None) -> Detector:
    """Return the detector of `version`, whose graph gets `threads` cores; 0 is every core this process may use.

    `kept` is where compiled graphs are, if anywhere. Raises ModelCorrupt if the graph cannot be read or does not take
    images of the version's input size.
    """
    reference = OpenVinoDetector(version, threads, kept)
    if not gpu_found():
        return reference
    from models.runtime.torch_detector import GpuUnusable, on_gpu

    try:
        detector = on_gpu(version, reference)
    except GpuUnusable as error:
        log.warning("GPU found and not used for %s: %s", version.version, error)
        return reference
    log.info("scoring %s on the GPU", version.version)
    return detector


def gpu_found(devices: Path = _DEVICES) -> bool:
    """Return whether an NVIDIA GPU may be used: its device is there and CUDA_VISIBLE_DEVICES does not hide it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    return any(devices.glob("nvidia[0-9]*"))
