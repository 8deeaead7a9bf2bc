"""Shadow: a challenger scores beside the champion, on a share of the images, and decides nothing.

Whatever goes wrong with a challenger is logged once and ends its time; the champion's results never depend on it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.detector import Detector, UInt8Array
from models.registry import ModelVersion, verify
from service.logs import fields
from service.root import MODELS
from service.scoring.decide import Decision
from service.scoring.scorers import Scorer, ScorerCache
from service.storage.versions import VersionRow

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Product and name of a version."""

Loaded = tuple[ModelVersion, Detector]


@dataclass(frozen=True)
class Shadow:
    """A challenger in memory. `drop` ends its time, with the reason; it may be called from any thread."""

    product: str
    scorer: Scorer
    drop: Callable[[str], None]


@dataclass(frozen=True)
class InShadow:
    """An image that a challenger scores too, uint8 `(H, W, 3)` at the size that it takes."""

    shadow: Shadow
    pixels: UInt8Array


@dataclass(frozen=True, slots=True)
class ShadowDecision:
    """What a challenger would have decided of an image; `product` is the challenger's."""

    product: str
    version: str
    decision: Decision


class Shadows:
    """The challengers that score beside the champions of `scorers`, each for its product.

    `look_up` returns, per product, the one in its trial, or None where that cannot be told now. All methods are for the
    loop's thread; a model is loaded in a thread of its own, since that takes seconds.
    """

    def __init__(
        self,
        root: Path,
        scorers: ScorerCache,
        look_up: Callable[[], Mapping[str, VersionRow] | None],
        load: Callable[[ModelVersion], Detector],
        *,
        share: float,
        loaded_max: int,
    ) -> None:
        self._root = root
        self._scorers = scorers
        self._look_up = look_up
        self._load = load
        self._share = share
        self._loaded_max = loaded_max
        self._known: Mapping[str, VersionRow] = {}
        self._loading: dict[Key, Future[Loaded]] = {}
        self._loaded: dict[Key, Loaded] = {}
        self._shadows: dict[str, Shadow] = {}
        self._dropped: set[Key] = set()
        self._logged_no_room: set[Key] = set()
        self._pool = ThreadPoolExecutor(1, "shadow")
        scorers.before_loading(self._make_room)

    def refresh(self, *, champions_changed: bool) -> None:
        """Look up again which challengers are in their trial, let the others go, and begin to load missing ones."""
        known = self._look_up()
        if known is not None:
            self._known = known
        wanted = {(product, row.version) for product, row in self._known.items()} - self._dropped
        for key in self._loaded.keys() - wanted:
            self._unload(key)
        for key, loading in list(self._loading.items()):
            if loading.done():
                del self._loading[key]
                if key in wanted:
                    self._take(key, loading)
        if champions_changed:
            # The policy or its rate may have changed: the deciders are made anew.
            self._shadows.clear()
        for product, row in self._known.items():
            key = (product, row.version)
            if key in self._dropped:
                continue
            if key in self._loaded:
                self._activate(key)
            elif key not in self._loading:
                self._begin_to_load(key, row)

    def beside(self, product: str, id: str, attempt: int) -> Shadow | None:
        """Return the challenger that scores the image `id` of `product` too, or None."""
        # An image that ended the service once is not given to a challenger again: it may be the one to blame.
        if not self._shadows or attempt > 1 or not in_share(id, self._share):
            return None
        return self._shadows.get(product) or self._shadows.get(self._scorers.owner(product))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin_to_load(self, key: Key, row: VersionRow) -> None:
        held = self._scorers.loaded
        # Until a champion is in memory there is nothing to score beside.
        if not held:
            return
        if held + len(self._loaded) + len(self._loading) >= self._loaded_max:
            if key not in self._logged_no_room:
                self._logged_no_room.add(key)
                log.warning(
                    "no room for a challenger in the shadow",
                    extra=fields(product=key[0], version=key[1], models_loaded_max=self._loaded_max),
                )
            return
        folder = self._root / MODELS / key[0] / key[1]

        def load() -> Loaded:
            version = verify(folder, row.sha256)
            return version, self._load(version)

        self._loading[key] = self._pool.submit(load)

    def _take(self, key: Key, loading: Future[Loaded]) -> None:
        error = loading.exception()
        if error is not None:
            self._drop(key, f"cannot be loaded: {error}")
            return
        self._loaded[key] = loading.result()
        self._make_room(self._scorers.loaded)
        if key in self._loaded:
            log.info("in the shadow", extra=fields(product=key[0], version=key[1], share=self._share))

    def _activate(self, key: Key) -> None:
        product, name = key
        if product in self._shadows and self._shadows[product].scorer.version == name:
            return
        version, detector = self._loaded[key]
        try:
            decider = self._scorers.decider_of(product, version)
        # Too few calibration scores, a policy without its anomalies, or a manifest that lacks what it needs: each is a
        # reason to drop this challenger, and none to stop.
        except Exception as error:  # noqa: BLE001
            self._drop(key, f"has no threshold: {error}")
            return
        scorer = Scorer(detector, decider, name, 1.0, version.draft, value_range=version.value_range)
        self._shadows[product] = Shadow(product, scorer, lambda reason: self._drop(key, reason))

    def _drop(self, key: Key, reason: str) -> None:
        # Its model leaves the memory at the next refresh; until then it gets no more images.
        if key not in self._dropped:
            self._dropped.add(key)
            self._shadows.pop(key[0], None)
            log.error(
                "challenger dropped from the shadow until the next start",
                extra=fields(product=key[0], version=key[1], reason=reason),
            )

    def _make_room(self, champions: int) -> None:
        """Let challengers go until, with so many champions in memory, there are no more models than allowed."""
        while self._loaded and champions + len(self._loaded) > self._loaded_max:
            self._unload(next(iter(self._loaded)))

    def _unload(self, key: Key) -> None:
        del self._loaded[key]
        self._shadows.pop(key[0], None)


def in_share(id: str, share: float) -> bool:
    """Return whether the image `id` is among the `share` (0 to 1) that challengers see: always the same ones."""
    digest = hashlib.sha256(id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def decide_in_shadow(batch: Sequence[tuple[str, InShadow]]) -> dict[str, ShadowDecision]:
    """Return what the challengers would have decided of the images of `batch`, by id.

    A challenger that raises, or whose score is not finite, is dropped and decides nothing.
    """
    of_challenger: dict[Key, list[tuple[str, InShadow]]] = {}
    for id, image in batch:
        of_challenger.setdefault((image.shadow.product, image.shadow.scorer.version), []).append((id, image))
    decided: dict[str, ShadowDecision] = {}
    for (product, version), images in of_challenger.items():
        shadow = images[0][1].shadow
        try:
            scores = shadow.scorer.detector.score(np.stack([image.pixels for _, image in images])).scores
            decided |= {
                id: ShadowDecision(product, version, shadow.scorer.decider.decide(float(score)))
                for (id, _), score in zip(images, scores, strict=True)
            }
        # Whatever a challenger's graph or memory trips over, the champion's verdicts are made and go on.
        except Exception as error:  # noqa: BLE001
            shadow.drop(f"{type(error).__name__}: {error}")
    return decided
