"""Gives OpenVINO to whoever needs it, without its telemetry: as soon as it is imported it reports its use over the
network through the package `openvino_telemetry`, if it finds that.

This program talks to no one.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any


def openvino() -> ModuleType:
    """Return the module `openvino`; the first call imports it, which does not import torch."""
    if "openvino" not in sys.modules:
        # None makes the import fail, and OpenVINO then takes its own stub that sends nothing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    module: ModuleType = importlib.import_module("openvino")
    return module


def allowed_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def compile_for_cpu(model: Any, threads: int = 0) -> Any:
    """Return `model`, an ov.Model of static shape, compiled in float32 for `threads` cores (0: all).

    Each stream has one thread, so what one input gives does not depend on what runs beside it.
    """
    threads = threads or allowed_cores()
    config = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        # Training runs beside scoring; two processes pinned to the same cores would starve.
        "ENABLE_CPU_PINNING": "NO",
    }
    return openvino().Core().compile_model(model, "CPU", config)


def queue_of(compiled: Any, requests: int) -> Any:
    """Return an AsyncInferQueue that runs at most `requests` inputs of the `compiled` model side by side."""
    return openvino().AsyncInferQueue(compiled, requests)
