"""Scores images with a version's exported graph on OpenVINO, without torch: what the daemon, `score` and `evaluate`
run.

Images go through one at a time, one stream per thread, so an image's score does not depend on its batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from models.detector import Detector, Float32Array, Scored, UInt8Array, check_images
from models.errors import ModelCorrupt
from models.registry import GRAPH, GRAPH_WEIGHTS, ModelVersion
from models.runtime.openvino_runtime import (
    allowed_cores,
    compile_for_cpu,
    compiler,
    export,
    import_for_cpu,
    openvino,
    queue_of,
)
from models.runtime.stream_tuning import Measured, measure_streams


@dataclass(frozen=True)
class GraphId:
    """Which compiled graph: digests, 32 hex digits each, of the files and input size, and of what compiled it."""

    files: str
    compiler: str


class CompiledGraphs(Protocol):
    """Where compiled graphs are kept. None of these raises where that fails."""

    def find(self, graph: GraphId) -> bytes | None:
        """Return what was kept, exactly, or None."""

    def keep(self, graph: GraphId, compiled: bytes) -> None:
        """Keep `compiled`, if that can be."""

    def drop(self, graph: GraphId) -> None:
        """Forget `graph`: what was kept of it is of no use."""


class OpenVinoDetector(Detector):
    """The detector of one version; call it from one thread at a time."""

    def __init__(self, version: ModelVersion, threads: int = 0, kept: CompiledGraphs | None = None) -> None:
        """Compile the graph of `version` for `threads` cores; 0 is every core this process may use.

        With `kept` it is taken from there, and put there, if that can be; it scores the same. Raises ModelCorrupt if it
        cannot be read or does not score an image of the version's input size.
        """
        self.input_size = version.input_size
        shape = (1, *version.input_size, 3)
        graph = _id(version, threads) if kept is not None else None
        compiled = _find(kept, graph, shape, threads) if kept is not None and graph is not None else None
        if compiled is None:
            compiled = _compile(str(version.folder / GRAPH), shape, threads)
            if kept is not None and graph is not None:
                _keep_compiled(kept, graph, compiled)
        self._compiled = compiled
        self.use_streams(threads or allowed_cores())

    def use_streams(self, streams: int) -> None:
        """Score at most `streams` images side by side from now on, of the cores that the graph was compiled for."""
        self._queue = queue_of(self._compiled, streams)
        self._queue.set_callback(_keep)
        self._streams = streams

    def measure(self) -> Measured:
        """Return how many streams do best here, and how fast each number was; takes less than half a second."""
        black = np.zeros((self._streams, *self.input_size, 3), dtype=np.uint8)

        def run(count: int) -> None:
            # Of so many images at once the queue uses no more streams than that.
            self.score(black[:count])

        return measure_streams(run, self._streams)

    def score(self, images: UInt8Array) -> Scored:
        """Score `images` as `Detector.score` says."""
        check_images(images, self.input_size)
        results: list[tuple[Float32Array, Float32Array] | None] = [None] * len(images)
        for index in range(len(images)):
            self._queue.start_async({0: images[index : index + 1]}, (results, index))
        self._queue.wait_all()
        kept = [result for result in results if result is not None]
        return Scored(
            scores=np.concatenate([scores for scores, _ in kept]), maps=np.concatenate([maps for _, maps in kept])
        )


def _id(version: ModelVersion, threads: int) -> GraphId | None:
    compiled_by = compiler(threads)
    if compiled_by is None:
        return None
    files = version.manifest.files
    of = f"{files[GRAPH]} {files[GRAPH_WEIGHTS]} {version.input_size}"
    return GraphId(hashlib.sha256(of.encode()).hexdigest()[:32], compiled_by)


def _find(kept: CompiledGraphs, graph: GraphId, shape: tuple[int, int, int, int], threads: int) -> Any | None:
    found = kept.find(graph)
    if found is None:
        return None
    try:
        return _tried(import_for_cpu(found, threads), shape)
    # Whatever OpenVINO says of it, the version's own files tell whether the model can be used.
    except Exception:  # noqa: BLE001
        kept.drop(graph)
        return None


def _keep_compiled(kept: CompiledGraphs, graph: GraphId, compiled: Any) -> None:
    try:
        content = export(compiled)
    except RuntimeError:  # a graph that cannot be exported
        return
    kept.keep(graph, content)


def _compile(graph: str, shape: tuple[int, int, int, int], threads: int) -> Any:
    try:
        model = openvino().Core().read_model(graph)
        model.reshape(list(shape))
        return _tried(compile_for_cpu(model, threads), shape)
    except (RuntimeError, UnicodeDecodeError) as error:
        # The second where the graph is not even text: OpenVINO quotes it in its message.
        raise ModelCorrupt(f"{graph}: expected a graph that takes uint8 {shape}; found {error}") from None


def _tried(compiled: Any, shape: tuple[int, int, int, int]) -> Any:
    # Some graphs that compile fail only with an image, here a black one; later it would be somebody's.
    trial = compiled.create_infer_request()
    trial.infer({0: np.zeros(shape, dtype=np.uint8)})
    for output in (0, 1):
        trial.get_output_tensor(output)
    return compiled


def _keep(request: Any, place: tuple[list[Any], int]) -> None:
    results, index = place
    # Copies, because the request's buffers are used again for the next image.
    results[index] = (request.get_output_tensor(0).data.copy(), request.get_output_tensor(1).data.copy())
