"""Scorers: which detector scores a product's images, and at which threshold.

Owns the detectors in memory. The database is asked again from time to time, so that a promotion takes effect.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.detector import Detector
from models.errors import ModelCorrupt, TooFewImages
from models.registry import GRAPH, GRAPH_WEIGHTS, ModelVersion, verify
from service.errors import ConfigurationError
from service.logs import fields
from service.root import DEFAULT_PRODUCT, MODELS
from service.scoring.active_versions import ActiveVersions
from service.scoring.decide import ThresholdDecider
from service.storage.versions import VersionRow

log = logging.getLogger(__name__)

CHOSEN_ADVICE = "the rate was chosen by a person: `tamis models threshold --reset` goes back to the settings"

GraphKey = tuple[str, str, tuple[int, int]]
"""The sha256 of a graph's two files, and the height and width that it takes."""


@dataclass(frozen=True)
class Scorer:
    """A detector in memory with all that a verdict needs."""

    detector: Detector
    decider: ThresholdDecider
    version: str
    pixel_threshold: float
    draft: bool = False
    """Whether its images are decoded as drafts, as the version's training found harmless."""


class ScorerCache:
    """Gives each product its scorer.

    `look_up` returns the active versions, or None where that cannot be told now: what was known holds.
    `decider_of` makes the decider of a product by a version and the rate that a person chose, if any, see
    `service.scoring.threshold_policy`; `load` makes a detector.
    """

    def __init__(
        self,
        root: Path,
        look_up: Callable[[], ActiveVersions | None],
        decider_of: Callable[[str, ModelVersion, float | None], ThresholdDecider],
        load: Callable[[ModelVersion], Detector],
        loaded_max: int,
    ) -> None:
        self._root = root
        self._look_up = look_up
        self._decider_of = decider_of
        self._load = load
        self._loaded_max = loaded_max
        self._active = ActiveVersions()
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._detectors: OrderedDict[GraphKey, Detector] = OrderedDict()
        self._scorers: dict[str, Scorer] = {}
        self._unusable: dict[str, str] = {}
        self._logged: set[str] = set()
        self._make_room: Callable[[int], None] = lambda _champions: None

    def before_loading(self, make_room: Callable[[int], None]) -> None:
        """Have `make_room` called with the number of detectors that will be in memory, before one more is loaded."""
        self._make_room = make_room

    def refresh(self) -> bool:
        """Ask again which versions are champions and which rates are chosen; return whether anything changed."""
        active = self._look_up()
        if active is None or active == self._active:
            return False
        if active.rates != self._active.rates:
            told = ",".join(f"{product}:{rate:g}" for product, rate in sorted(active.rates.items()))
            log.info("rates chosen", extra=fields(rates=told or "none"))
        self._active = active
        self._scorers.clear()
        self._unusable.clear()
        return True

    def has(self, product: str) -> bool:
        """Return whether there is a champion for `product`, its own or that of `default`, as far as is known."""
        return self.owner(product) in self._active.champions and product not in self._unusable

    def owner(self, product: str) -> str:
        """Return the product whose versions score `product`: itself where it has a champion, else `default`."""
        return product if product in self._active.champions else DEFAULT_PRODUCT

    def decider_of(self, product: str, version: ModelVersion) -> ThresholdDecider:
        """Return the decider of `product` by `version`, at the chosen rate. Raises as `threshold_policy.decider_of`."""
        return self._decider_of(product, version, self._active.rates.get(product))

    @property
    def loaded(self) -> int:
        """How many detectors are in memory."""
        return len(self._detectors)

    @property
    def products(self) -> list[str]:
        """The products that have a champion of their own."""
        return sorted(self._active.champions)

    def get(self, product: str) -> Scorer:
        """Return the scorer for `product`, loading it where needed; a damaged champion gives way to the one before it.

        Raises ConfigurationError when no version can be used; until its versions change, the product counts as one
        without a model, so that it does not stop the others.
        """
        scorer = self._scorers.get(product)
        if scorer is None:
            try:
                scorer = self._scorers[product] = self._make(product)
            except ConfigurationError as error:
                self._unusable[product] = str(error)
                self._log_once(product, "no usable model; files wait", product=product, reason=error)
                raise
        return scorer

    def _make(self, product: str) -> Scorer:
        owner = self.owner(product)
        failures = []
        for row in self._active.champions[owner]:
            try:
                detector, version = self._detector(owner, row)
                decider = self.decider_of(product, version)
            except TooFewImages as error:
                chosen = f"; {CHOSEN_ADVICE}" if product in self._active.rates else ""
                raise ConfigurationError(f"product {product}, version {row.version}: {error}{chosen}") from None
            except ModelCorrupt as error:
                failures.append(str(error))
                self._log_once(row.version, "model passed over", product=owner, version=row.version, reason=error)
                continue
            pixel_threshold = version.manifest.calibration.pixel_threshold
            return Scorer(detector, decider, row.version, pixel_threshold, version.draft)
        raise ConfigurationError(f"product {owner}: no version can be loaded: " + "; ".join(failures))

    def _log_once(self, once: str, event: str, **values: object) -> None:
        if once not in self._logged:
            self._logged.add(once)
            log.error(event, extra=fields(**values))

    def _detector(self, product: str, row: VersionRow) -> tuple[Detector, ModelVersion]:
        version = self._versions.get((product, row.version))
        if version is None or _graph_key(version) not in self._detectors:
            version = self._versions[product, row.version] = verify(
                self._root / MODELS / product / row.version, row.sha256
            )
        key = _graph_key(version)
        if key not in self._detectors:
            self._make_room(min(len(self._detectors) + 1, self._loaded_max))
            self._detectors[key] = self._load(version)
            while len(self._detectors) > self._loaded_max:
                _, gone = self._detectors.popitem(last=False)
                self._scorers = {p: s for p, s in self._scorers.items() if s.detector is not gone}
        self._detectors.move_to_end(key)
        return self._detectors[key], version


def _graph_key(version: ModelVersion) -> GraphKey:
    """Return what two versions share that need only one detector, as those of jointly trained products do."""
    files = version.manifest.files
    return (files[GRAPH], files[GRAPH_WEIGHTS], version.input_size)
