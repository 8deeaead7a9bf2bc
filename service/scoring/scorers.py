"""Scorers: which detector scores a product's images, and at which threshold.

Owns the detectors in memory. The database is asked again from time to time, so that a promotion takes effect.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from models.detector import Detector
from models.errors import ModelCorrupt, TooFewImages
from models.registry import GRAPH, GRAPH_WEIGHTS, ModelVersion, verify
from service.errors import ConfigurationError
from service.logs import fields
from service.names import composed
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
    graph: GraphKey = ("", "", (0, 0))
    """Which graph the detector runs."""
    value_range: tuple[float, float] | None = None
    """Which values of images of more than 8 bits a sample become 0 to 255, as in the version's training."""


@dataclass(frozen=True)
class _Loading:
    """A version that is being loaded for its product, and the graphs that stay in memory meanwhile.

    What comes of it has no detector where its graph was in memory.
    """

    owner: str
    row: VersionRow
    kept: set[GraphKey]
    future: Future[tuple[ModelVersion, Detector | None]]


class ScorerCache:
    """Gives each product its scorer.

    `look_up` returns the active versions, or None where that cannot be told now: what was known holds.
    `decider_of` makes the decider of a product by a version and the rate that a person chose, if any, see
    `service.scoring.threshold_policy`; `load` makes a detector, in a thread of its own, since that takes a moment.
    `on_loaded` is called in that thread when one is there. All methods are for the loop's thread.
    """

    def __init__(
        self,
        root: Path,
        look_up: Callable[[], ActiveVersions | None],
        decider_of: Callable[[str, ModelVersion, float | None], ThresholdDecider],
        load: Callable[[ModelVersion], Detector],
        loaded_max: int,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._look_up = look_up
        self._decider_of = decider_of
        self._load = load
        self.loaded_max = loaded_max
        self._on_loaded = on_loaded
        self._active = ActiveVersions()
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._corrupt: dict[tuple[str, str], str] = {}
        self._detectors: OrderedDict[GraphKey, Detector] = OrderedDict()
        # Those that were let go too, until the last image that they score is done.
        self._alive: WeakSet[Detector] = WeakSet()
        self._scorers: dict[str, Scorer] = {}
        self._unusable: dict[str, str] = {}
        self._logged: set[str] = set()
        self._ahead: list[str] = []
        self._make_room: Callable[[int], None] = lambda _champions: None
        self._pool = ThreadPoolExecutor(1, "load")
        self._loading: _Loading | None = None

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
        self._corrupt.clear()
        self._ahead = self.products[::-1]
        return True

    def has(self, product: str) -> bool:
        """Return whether there is a champion for `product`, its own or that of `default`, as far as is known."""
        return self.owner(product) in self._active.champions and product not in self._unusable

    def owner(self, product: str) -> str:
        """Return the product whose versions score `product`: itself where it has a champion, else `default`."""
        if product in self._active.champions:
            return product
        # One that was trained before names were composed may be called by the decomposed name still.
        return next((one for one in self._active.champions if composed(one) == product), DEFAULT_PRODUCT)

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
        while (scorer := self._scorer(product)) is None:
            if self._loading is None:
                self._begin(product, set())
            self._take_loaded(wait=True)
        return scorer

    def in_memory(self, product: str, *, use: bool = False) -> Scorer | None:
        """Return the scorer for `product` if its detector is in memory, else None. Raises as `get`.

        With `use` it was used last, and is the last to be let go.
        """
        self._take_loaded()
        scorer = self._scorer(product)
        if scorer is not None and use:
            self._detectors.move_to_end(scorer.graph)
        return scorer

    def begin_to_load(self, product: str, keep: Collection[str]) -> bool:
        """Begin to load what `product` lacks, and return whether that could be begun; detectors of `keep` stay.

        One is loaded at a time, and none while two that were let go still score what was decoded for them.
        """
        self._take_loaded()
        if self._loading is not None or len(self._alive) > self.loaded_max + 1:
            return False
        kept = {self._scorers[name].graph for name in keep if name in self._scorers}
        if len(self._detectors) >= self.loaded_max and kept >= self._detectors.keys():
            return False
        self._begin(product, kept)
        return True

    def load_ahead(self) -> None:
        """Begin to load a champion that no image has asked for yet, if there is one and room for it."""
        self._take_loaded()
        while self._ahead and self._loading is None and len(self._detectors) < self.loaded_max:
            product = self._ahead.pop()
            try:
                if self._scorer(product) is None:
                    self._ahead.append(product)  # its first version may turn out to be damaged
                    self._begin(product, set(self._detectors))
            except ConfigurationError:  # which has been logged
                continue

    def close(self) -> None:
        """End the thread that loads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _scorer(self, product: str) -> Scorer | None:
        """Return the scorer for `product`, None where something must be loaded first. Raises as `get`."""
        scorer = self._scorers.get(product)
        if scorer is not None:
            return scorer
        try:
            row = self._first_usable(product)
            version = self._versions.get((self.owner(product), row.version))
            if version is None or graph_key(version) not in self._detectors:
                return None
            scorer = self._scorers[product] = self._make(product, row, version)
        except ConfigurationError as error:
            self._unusable[product] = str(error)
            self._log_once(product, "no usable model; files wait", product=product, reason=error)
            raise
        return scorer

    def _first_usable(self, product: str) -> VersionRow:
        owner = self.owner(product)
        rows = self._active.champions[owner]
        for row in rows:
            if (owner, row.version) not in self._corrupt:
                return row
        failures = "; ".join(self._corrupt[owner, row.version] for row in rows)
        raise ConfigurationError(f"product {owner}: no version can be loaded: {failures}")

    def _make(self, product: str, row: VersionRow, version: ModelVersion) -> Scorer:
        try:
            decider = self.decider_of(product, version)
        except TooFewImages as error:
            chosen = f"; {CHOSEN_ADVICE}" if product in self._active.rates else ""
            raise ConfigurationError(f"product {product}, version {row.version}: {error}{chosen}") from None
        key, pixel_threshold = graph_key(version), version.manifest.calibration.pixel_threshold
        detector, value_range = self._detectors[key], version.value_range
        return Scorer(detector, decider, row.version, pixel_threshold, version.draft, key, value_range)

    def _begin(self, product: str, kept: set[GraphKey]) -> None:
        owner, row = self.owner(product), self._first_usable(product)
        in_memory = frozenset(self._detectors)
        self._make_room(min(len(self._detectors) + 1, self.loaded_max))

        def load() -> tuple[ModelVersion, Detector | None]:
            version = verify(self._root / MODELS / owner / row.version, row.sha256)
            # Jointly trained products share one.
            return version, None if graph_key(version) in in_memory else self._load(version)

        future = self._pool.submit(load)
        self._loading = _Loading(owner, row, kept, future)
        future.add_done_callback(lambda _: self._on_loaded())

    def _take_loaded(self, *, wait: bool = False) -> None:
        """Take what has been loaded. Raises what loading it raised, but for a version that cannot be used."""
        loading = self._loading
        if loading is None or not (wait or loading.future.done()):
            return
        of_version = (loading.owner, loading.row.version)
        try:
            version, detector = loading.future.result()
        except ModelCorrupt as error:
            self._corrupt[of_version] = str(error)
            told = dict(zip(("product", "version"), of_version, strict=True))
            self._log_once(loading.row.version, "model passed over", **told, reason=error)
            return
        finally:
            self._loading = None
        self._versions[of_version] = version
        if detector is not None:
            self._alive.add(detector)
            self._detectors[graph_key(version)] = detector
            while len(self._detectors) > self.loaded_max:
                # The new one is the last, so that it goes only where all others are kept.
                self._let_go(next(key for key in self._detectors if key not in loading.kept))

    def _let_go(self, key: GraphKey) -> None:
        gone = self._detectors.pop(key)
        self._scorers = {product: scorer for product, scorer in self._scorers.items() if scorer.detector is not gone}

    def _log_once(self, once: str, event: str, **values: object) -> None:
        if once not in self._logged:
            self._logged.add(once)
            log.error(event, extra=fields(**values))


def graph_key(version: ModelVersion) -> GraphKey:
    """Return what two versions share that need only one detector, as those of jointly trained products do."""
    files = version.manifest.files
    return (files[GRAPH], files[GRAPH_WEIGHTS], version.input_size)
