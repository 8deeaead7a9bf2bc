"""Gives OpenVINO to whoever needs it, without its telemetry: as soon as it is imported it reports its use over the
network through the package `openvino_telemetry`, if it finds that.

This program talks to no one.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Variables by which oneDNN and OpenVINO are told which code to choose.
_TOLD_BY = ("ONEDNN_", "DNNL_", "OV_", "OPENVINO_")


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
    return openvino().Core().compile_model(model, "CPU", _config(threads))


def import_for_cpu(compiled: bytes, threads: int = 0) -> Any:
    """Return what `export` made of a model that was compiled for as many `threads`. Raises RuntimeError."""
    return openvino().Core().import_model(io.BytesIO(compiled), "CPU", _config(threads))


def export(compiled: Any) -> bytes:
    """Return the `compiled` model as bytes for `import_for_cpu`, which takes any that are long enough for good."""
    stream = io.BytesIO()
    compiled.export_model(stream)
    return stream.getvalue()


def compiler(threads: int = 0) -> str | None:
    """Return a digest, 32 hex digits, of all that a compiled graph depends on beside its model; None if not known."""
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return None
    features = [line for line in cpu.splitlines() if line.startswith(("model name", "flags", "Features", "CPU "))]
    variables = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_TOLD_BY))
    known = (openvino().__version__, platform.machine(), features, variables, sorted(_config(threads).items()))
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def queue_of(compiled: Any, requests: int) -> Any:
    """Return an AsyncInferQueue that runs at most `requests` inputs of the `compiled` model side by side."""
    return openvino().AsyncInferQueue(compiled, requests)


def _config(threads: int) -> dict[str, str]:
    threads = threads or allowed_cores()
    return {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        # Training runs beside scoring; two processes pinned to the same cores would starve.
        "ENABLE_CPU_PINNING": "NO",
    }
