"""Parts of the daemon that take more than a call to open: events, scorers, and the pipeline's limits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from models.registry import ModelVersion
from models.runtime.stream_tuning import BATCH_MIN, Measured, batch_size
from service.errors import ConfigurationError
from service.filesystem.file_state import NameFilter
from service.filesystem.mount_table import mount_of, sends_events
from service.filesystem.odd_entries import OddEntries
from service.imaging.decoder_processes import DecoderProcesses
from service.imaging.read import decoder_of
from service.inspection.intake import Intake
from service.inspection.pipeline import PipelineLimits
from service.inspection.settle import Settling
from service.inspection.watch import Watcher
from service.logs import fields
from service.root import INCOMING
from service.scoring.active_versions import active_versions, challengers_in_shadow, unless_locked
from service.scoring.decide import ThresholdDecider
from service.scoring.detector_loader import DetectorLoader
from service.scoring.free_memory import free_bytes, models_that_fit
from service.scoring.kept_graphs import KeptGraphs
from service.scoring.scorers import ScorerCache
from service.scoring.shadow import Shadows
from service.scoring.threshold_policy import decider_of
from service.settings import Settings
from service.storage.versions import VersionRow

log = logging.getLogger(__name__)

LOADED_AT_START = 4
"""So that a start takes no longer the more products there are."""


def start_watching(watcher: Watcher, root: Path, mode: str) -> str:
    """Start `watcher` where there are file events and `mode`, a `watch_mode`, allows; return `events` or `polling`."""
    if mode == "polling" or (mode == "auto" and not sends_events(mount_of(root / INCOMING).type)):
        return "polling"
    try:
        watcher.start()
    except OSError as error:
        if mode == "events":
            raise ConfigurationError(
                f"{root / INCOMING}: watch_mode is 'events' and the kernel gives none: {error}; "
                "raise fs.inotify.max_user_watches and max_user_instances, or set watch_mode to 'auto'"
            ) from None
        log.warning("no file events; polling", extra=fields(reason=error))
        return "polling"
    return "events"


def open_scoring(
    root: Path,
    settings: Settings,
    connect: Callable[[], Connection],
    use_batch_size: Callable[[int], None],
    wake: Callable[[], None],
    stack: ExitStack,
) -> tuple[ScorerCache, Shadows | None]:
    """Return the scorers of `root`, and its challengers if any may score beside them.

    `wake` is called, from another thread, when a model is in memory.
    """

    def on_measured(measured: Measured) -> None:
        if not settings.batch_size_max:
            use_batch_size(batch_size(measured.chosen_images_per_s, settings.in_flight_max))

    def decider(product: str, version: ModelVersion, chosen_rate: float | None) -> ThresholdDecider:
        return decider_of(settings, product, version, chosen_rate=chosen_rate)

    def challengers(connection: Connection) -> dict[str, VersionRow]:
        return challengers_in_shadow(connection, settings.shadow_hours, datetime.now(UTC))

    kept = KeptGraphs(root, settings.graph_cache_bytes_max, settings.free_bytes_min)
    load = DetectorLoader(settings.scoring_threads, on_measured, kept)
    loaded_max = settings.models_loaded_max or models_that_fit(free_bytes())
    scorers = ScorerCache(
        root, partial(unless_locked, connect, active_versions), decider, load, loaded_max, on_loaded=wake
    )
    stack.callback(scorers.close)
    if not settings.shadow_hours:
        return scorers, None
    shadows = Shadows(
        root,
        scorers,
        partial(unless_locked, connect, challengers),
        load,
        share=settings.shadow_share,
        loaded_max=loaded_max,
    )
    stack.callback(shadows.close)
    return scorers, shadows


def open_intake(
    root: Path, settings: Settings, names: NameFilter, scorers: ScorerCache, shadows: Shadows | None, odd: OddEntries
) -> Intake:
    """Return the intake of `root`. A settle time that somebody set holds after a close too: they know their writers."""
    settling = Settling(
        settings.settle_time_s,
        settings.empty_file_timeout_s,
        close_settles="settle_time_s" not in settings.model_fields_set,
    )
    return Intake(root, names, scorers, settling, shadows, odd, settings.truncated_wait_s)


def start_decoder(settings: Settings, stack: ExitStack) -> DecoderProcesses:
    """Return the processes that decode, of which the first is on its way while the rest opens."""
    decoder = decoder_of(settings)
    stack.callback(decoder.close)
    decoder.start()
    return decoder


def load_models(scorers: ScorerCache) -> None:
    """Load the first champions; the others follow when they have images. Raises ConfigurationError where none can be
    loaded.
    """
    scorers.refresh()
    refusals: list[str] = []
    loaded = 0
    for product in scorers.products:
        if loaded == min(scorers.loaded_max, LOADED_AT_START):
            break
        try:
            scorers.get(product)
            loaded += 1
        except ConfigurationError as error:
            refusals.append(str(error))
    if refusals and not loaded:
        raise ConfigurationError("; ".join(refusals))


def limits_of(settings: Settings) -> PipelineLimits:
    """Return the limits that `settings` set, with as large a micro-batch as any machine is quick with at first."""
    as_set = {name: getattr(settings, name) for name in PipelineLimits.__dataclass_fields__}
    batch_size_max = settings.batch_size_max or min(BATCH_MIN, settings.in_flight_max)
    return PipelineLimits(**{**as_set, "decode_threads": settings.decoders, "batch_size_max": batch_size_max})
