"""Detector loader: gets a version's detector into memory, on as many streams as are fastest on this machine.

The first detector is measured, for less than half a second; the others take what was chosen then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from models.detector import Detector
from models.registry import ModelVersion
from models.runtime.stream_tuning import Measured
from service.logs import fields

if TYPE_CHECKING:
    from models.runtime.openvino_detector import CompiledGraphs

log = logging.getLogger(__name__)


class DetectorLoader:
    """Makes detectors. `threads` is the setting, 0 to measure; `on_measured` is called once with what was found.

    `kept` is where compiled graphs are, if anywhere.
    """

    def __init__(
        self, threads: int, on_measured: Callable[[Measured], None], kept: CompiledGraphs | None = None
    ) -> None:
        self._kept = kept
        self._threads = threads
        self._on_measured = on_measured
        self._measured: Measured | None = None

    def __call__(self, version: ModelVersion) -> Detector:
        """Return the detector of `version`. Raises ModelCorrupt."""
        from models.runtime.load_detector import load_detector
        from models.runtime.openvino_detector import OpenVinoDetector

        detector = load_detector(version, self._threads, self._kept)
        if self._threads or not isinstance(detector, OpenVinoDetector):
            return detector
        if self._measured is None:
            self._measured = detector.measure()
            log.info(
                "measured",
                extra=fields(
                    version=version.version,
                    streams=self._measured.streams,
                    images_per_s=" ".join(f"{n}:{rate:.1f}" for n, rate in self._measured.images_per_s.items()),
                ),
            )
            self._on_measured(self._measured)
        detector.use_streams(self._measured.streams)
        return detector
