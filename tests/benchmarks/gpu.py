"""What a GPU gives: images a second of a version's network on it beside its graph on the CPU, in turn, and how far
their scores are apart on real images.

Needs an NVIDIA GPU that torch can use. The images are decoded before the clock runs: this is the network alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.detector import Detector, UInt8Array
from models.registry import ModelVersion, verify
from models.runtime.load_detector import gpu_found
from models.runtime.openvino_detector import OpenVinoDetector
from models.runtime.torch_detector import BATCH_SIZE, TOLERANCE, TorchDetector, on_gpu
from service.imaging.decode import decode
from tests.benchmarks import captures


def differences(version: ModelVersion, found: Detector, reference: Detector, images: UInt8Array) -> dict[str, Any]:
    """Return how far scores and maps are from those of `reference`, in units of the threshold, and changed verdicts."""
    threshold = version.manifest.calibration.threshold
    one, other = found.score(images), reference.score(images)
    away = np.abs(one.scores.astype(np.float64) - other.scores) / abs(threshold)
    return {
        "images": len(images),
        "largest_of_threshold": float(away.max()),
        "median_of_threshold": float(np.median(away)),
        "map_largest": float(np.abs(one.maps - other.maps).max()),
        "map_spread": float(np.ptp(other.maps)),
        "changed_verdicts": int(((one.scores > threshold) != (other.scores > threshold)).sum()),
    }


def images_per_s(detector: Detector, images: UInt8Array) -> float:
    """Return images per second of one pass over `images` in batches as the daemon makes them."""
    began = time.perf_counter()
    for start in range(0, len(images), BATCH_SIZE):
        detector.score(images[start : start + BATCH_SIZE])
    return len(images) / (time.perf_counter() - began)


def measure(version: ModelVersion, images: UInt8Array, rounds: int) -> dict[str, Any]:
    """Return differences and rates of `version` on the GPU, as the daemon loads it and in either precision."""
    import torch

    reference = OpenVinoDetector(version)
    detectors: dict[str, Detector] = {
        "cpu": reference,
        "as the daemon": on_gpu(version, reference),
        "float16": TorchDetector(version, half=True),
        "float32": TorchDetector(version),
    }
    rates: dict[str, list[float]] = {name: [] for name in detectors}
    for detector in detectors.values():
        images_per_s(detector, images)  # not counted: the first pass warms caches and clocks
    for _ in range(rounds):
        for name, detector in detectors.items():
            rates[name].append(images_per_s(detector, images))
    median = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "version": version.version,
        "kind": version.manifest.kind,
        "input_size": list(version.input_size),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "batch": BATCH_SIZE,
        "images_per_s": median,
        "rounds": rates,
        "times_the_cpu": median["as the daemon"] / median["cpu"],
        "differences": {
            name: differences(version, detector, reference, images)
            for name, detector in detectors.items()
            if name != "cpu"
        },
        "tolerance": TOLERANCE,
    }


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--version", type=Path, required=True, help="folder of a version")
    parser.add_argument("--from", dest="images", type=Path, required=True, help="folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not gpu_found():
        sys.exit("expected an NVIDIA GPU; found no /dev/nvidia*")
    version = verify(options.version)
    images = np.stack(
        [decode(path.read_bytes(), version.input_size).pixels for path in sorted(options.images.iterdir())]
    )
    captures.report({"benchmark": "gpu", **measure(version, images, options.rounds)}, options.output)


if __name__ == "__main__":
    main()
