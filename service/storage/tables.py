"""The tables as typed classes, and the public views by their columns.

Owns the names, types and constraints of what is stored. The statements that make them are in `migrations`;
a test holds the two together. The tables may change with a migration, the views may not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

ImageState = Literal["scored", "placed", "quarantined", "missing", "conflict"]
Verdict = Literal["normal", "anomaly"]
EnergyKind = Literal["scoring", "idle", "training", "evaluation"]
EnergySource = Literal["measured", "estimated"]
VersionState = Literal["champion", "challenger", "retired", "rejected"]
Role = Literal["train", "calibrate", "golden"]
RetrainingTrigger = Literal["cron", "labels", "drift", "command"]
RetrainingState = Literal["waiting", "running", "done", "failed", "stopped"]
RetrainingOutcome = Literal["promoted", "challenger", "rejected", "skipped"]
DriftState = Literal["steady", "drifting"]
DriftCause = Literal["light", "defects", "unknown"]

FINITE = "1.7976931348623157e308"


def time_text(moment: datetime) -> str:
    """Return `moment` as it is stored: UTC, ISO 8601, fixed width, so that text order is time order.

    Raises ValueError for a time without a zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, found {moment!r}")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def time_of(stored: str) -> datetime:
    """Return the UTC time that `time_text` wrote."""
    return datetime.fromisoformat(stored)


class UTCTime(TypeDecorator[datetime]):
    """A UTC time, stored as text `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else time_text(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else time_of(value)


def one_of(column: str, names: Any) -> str:
    """Return the SQL condition that `column` is one of the names of a Literal; NULL passes."""
    return f"{column} IN ({', '.join(repr(name) for name in get_args(names))})"


def whole(column: str, least: int) -> str:
    """Return the SQL condition that `column` is an integer of at least `least`; NULL passes.

    SQLite stores text in an integer column without a word; this does not.
    """
    return f"{column} IS NULL OR (typeof({column}) = 'integer' AND {column} >= {least})"


def finite(column: str) -> str:
    """Return the SQL condition that `column` is a finite number; NULL passes."""
    return f"{column} IS NULL OR (typeof({column}) = 'real' AND abs({column}) <= {FINITE})"


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_by_%(column_0_N_name)s",
            "ck": "%(table_name)s_%(constraint_name)s",
            "fk": "%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {str: Text, datetime: UTCTime, float: Float}  # noqa: RUF012 (SQLAlchemy's own idiom)


class Energy(Base):
    """Energy of a micro-batch, of a stretch of idling, of a training or an evaluation. NULL is unknown."""

    __tablename__ = "energy_rows"
    __table_args__ = (
        CheckConstraint(one_of("kind", EnergyKind), "kind"),
        CheckConstraint(one_of("source", EnergySource), "source"),
        CheckConstraint(whole("images", 0), "images"),
        CheckConstraint("duration_s >= 0", "duration"),
        CheckConstraint("total_wh >= 0", "total"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(index=True)
    duration_s: Mapped[float]
    images: Mapped[int]
    cpu_wh: Mapped[float | None]
    gpu_wh: Mapped[float | None]
    ram_wh: Mapped[float | None]
    total_wh: Mapped[float | None]
    emissions_g: Mapped[float | None]
    source: Mapped[str]
    country: Mapped[str | None]


class Image(Base):
    """One image that was dropped: its verdict, and where its file is or should be, relative to ROOT."""

    __tablename__ = "images"
    __table_args__ = (
        CheckConstraint(one_of("state", ImageState), "state"),
        CheckConstraint(one_of("verdict", Verdict), "verdict"),
        # SQLite stores NaN as NULL: without this, a NaN score could lie beside a verdict.
        CheckConstraint("verdict IS NULL OR (score IS NOT NULL AND threshold IS NOT NULL)", "verdict_has_score"),
        CheckConstraint(finite("score"), "score"),
        CheckConstraint(finite("threshold"), "threshold"),
        CheckConstraint("p_value >= 0 AND p_value <= 1", "p_value"),
        CheckConstraint("length(sha256) = 64", "sha256"),
        CheckConstraint(whole("width", 1), "width"),
        CheckConstraint(whole("height", 1), "height"),
        CheckConstraint(whole("bytes", 0), "bytes"),
        CheckConstraint(whole("attempts", 0), "attempts"),
        # Each serves one filter of `images.search` in its order, newest first, without sorting.
        Index(None, "received_at", "id"),
        Index(None, "product", "received_at", "id"),
        Index(None, "product", "verdict", "received_at", "id"),
        Index(None, "verdict", "received_at", "id"),
        Index(None, "state", "received_at", "id"),
        # The uncertain ones alone, newest first: few, so that other filters may be looked at one by one.
        Index("images_uncertain_by_received_at", "received_at", "id", sqlite_where=text("uncertain = 1")),
        # The review queue in its order, backwards; `product` lets the rows of others be passed over unread.
        Index(
            "images_by_uncertainty",
            *("uncertainty", "received_at", "id", "product"),
            sqlite_where=text("uncertainty IS NOT NULL"),
        ),
        # Retention: the files that are there, oldest first, with their sizes; and those that a crash left on their way.
        Index(
            "images_placed", *("verdict", "received_at", "id", "bytes", "state"), sqlite_where=text("state = 'placed'")
        ),
        Index("images_being_removed", "id", sqlite_where=text("error_code = 'removing_by_retention'")),
        # The earliest image with given bytes is the one that is no duplicate.
        Index("images_by_sha256", "sha256", sqlite_where=text("duplicate_of IS NULL")),
        # The others with its bytes: few, and asked for where a label holds for bytes or a file was renamed.
        Index("images_by_duplicate_of", "duplicate_of", sqlite_where=text("duplicate_of IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    product: Mapped[str]
    file_name: Mapped[str]
    path: Mapped[str]
    destination: Mapped[str]
    state: Mapped[str]
    verdict: Mapped[str | None]
    score: Mapped[float | None]
    threshold: Mapped[float | None]
    p_value: Mapped[float | None]
    model_version: Mapped[str | None]
    sha256: Mapped[str | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    mode: Mapped[str | None]
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    received_at: Mapped[datetime]
    decided_at: Mapped[datetime]
    placed_at: Mapped[datetime | None]
    latency_ms: Mapped[float | None]
    attempts: Mapped[int]
    duplicate_of: Mapped[str | None]
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    energy_id: Mapped[int | None] = mapped_column(ForeignKey("energy_rows.id"))
    uncertain: Mapped[int | None] = mapped_column(CheckConstraint("uncertain IN (0, 1)", "uncertain"))
    uncertainty: Mapped[float | None] = mapped_column(
        CheckConstraint("uncertainty >= 0 AND uncertainty <= 1", "uncertainty")
    )
    brightness: Mapped[float | None] = mapped_column(CheckConstraint(finite("brightness"), "brightness"))
    contrast: Mapped[float | None] = mapped_column(CheckConstraint(finite("contrast"), "contrast"))
    sharpness: Mapped[float | None] = mapped_column(CheckConstraint(finite("sharpness"), "sharpness"))


class RegionRow(Base):
    """A part of an image above the pixel threshold, in pixels of the upright image; `number` 1 has the highest peak.

    Written with its image and never changed.
    """

    __tablename__ = "region_rows"
    __table_args__ = (
        CheckConstraint(whole("number", 1), "number"),
        CheckConstraint(whole("x", 0), "x"),
        CheckConstraint(whole("y", 0), "y"),
        CheckConstraint(whole("width", 1), "width"),
        CheckConstraint(whole("height", 1), "height"),
        CheckConstraint(whole("area", 1), "area"),
        CheckConstraint("area_share > 0 AND area_share <= 1", "area_share"),
        CheckConstraint(finite("peak"), "peak"),
        CheckConstraint(finite("mean"), "mean"),
        {"sqlite_with_rowid": False},
    )

    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    x: Mapped[int]
    y: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    area: Mapped[int]
    area_share: Mapped[float]
    peak: Mapped[float]
    mean: Mapped[float]


class Review(Base):
    """What a person said of an image; rows are only ever added, and the latest of an image holds.

    `label` NULL takes back what was said before. `source` says by which way it came (page, folder, command).
    """

    __tablename__ = "reviews"
    __table_args__ = (
        CheckConstraint(one_of("label", Verdict), "label"),
        Index("reviews_by_image_id", "image_id", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"))
    label: Mapped[str | None]
    labelled_by: Mapped[str | None]
    labelled_at: Mapped[datetime]
    source: Mapped[str]
    note: Mapped[str | None]


class Version(Base):
    """A model version that was published, and whether it is the champion of its product."""

    __tablename__ = "versions"
    __table_args__ = (
        CheckConstraint(one_of("state", VersionState), "state"),
        CheckConstraint(whole("images", 0), "images"),
        CheckConstraint("length(sha256) = 64", "sha256"),
        Index("versions_one_champion", "product", unique=True, sqlite_where=text("state = 'champion'")),
    )

    product: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    created_at: Mapped[datetime]
    state: Mapped[str]
    reason: Mapped[str | None]
    threshold: Mapped[float | None]
    image_auroc: Mapped[float | None]
    f1: Mapped[float | None]
    false_alarm_rate: Mapped[float | None]
    training_wh: Mapped[float | None]
    images: Mapped[int | None]
    sha256: Mapped[str]


class Promotion(Base):
    """A change of champion, as it happened; rows are only ever added. What a rollback goes back over."""

    __tablename__ = "promotions"
    __table_args__ = (
        CheckConstraint("action IN ('promote', 'rollback')", "action"),
        Index(None, "product", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    product: Mapped[str]
    version: Mapped[str]
    action: Mapped[str]
    at: Mapped[datetime]
    reason: Mapped[str | None]


class TrainingSetImage(Base):
    """An image that a person vouched for, once per product and bytes; `label` NULL once it was taken back.

    `path` is its file, below training/ and relative to ROOT, `image_id` the image it came from, NULL for an imported
    one. `role` is given when it is first added and never changes.
    """

    __tablename__ = "training_pictures"
    __table_args__ = (
        CheckConstraint(one_of("label", Verdict), "label"),
        CheckConstraint(one_of("role", Role), "role"),
        CheckConstraint("length(sha256) = 64", "sha256"),
        Index("training_pictures_once", "product", "sha256", unique=True),
        Index(None, "product", "taken_at"),
        Index(None, "image_id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    product: Mapped[str]
    sha256: Mapped[str]
    label: Mapped[str | None]
    role: Mapped[str | None]
    path: Mapped[str]
    file_name: Mapped[str]
    image_id: Mapped[str | None] = mapped_column(ForeignKey("images.id"))
    taken_at: Mapped[datetime]
    added_at: Mapped[datetime]
    added_by: Mapped[str | None]


class RetrainingRun(Base):
    """A retraining of one product: why, when, and what came of it. `review_id` is the latest review it knew of.

    `gate` is the comparison that decided, as JSON; `report` a file below ROOT. `saved_g` is an estimate, of what the
    choice of the hour saved.
    """

    __tablename__ = "retraining_runs"
    __table_args__ = (
        CheckConstraint(one_of("trigger", RetrainingTrigger), "trigger"),
        CheckConstraint(one_of("state", RetrainingState), "state"),
        CheckConstraint(one_of("outcome", RetrainingOutcome), "outcome"),
        Index(None, "product", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    product: Mapped[str]
    trigger: Mapped[str]
    state: Mapped[str]
    requested_at: Mapped[datetime]
    planned_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    review_id: Mapped[int | None]
    champion: Mapped[str | None]
    challenger: Mapped[str | None]
    outcome: Mapped[str | None]
    reason: Mapped[str | None]
    gate: Mapped[str | None]
    report: Mapped[str | None]
    total_wh: Mapped[float | None]
    saved_g: Mapped[float | None]


class ShadowScore(Base):
    """What a challenger said of an image that the champion judged; `product` is the challenger's.

    `champion_verdict` is that of the image's own row, again, so that where the two differ is an index.
    """

    __tablename__ = "shadow_scores"
    __table_args__ = (
        CheckConstraint(one_of("verdict", Verdict), "verdict"),
        CheckConstraint(one_of("champion_verdict", Verdict), "champion_verdict"),
        CheckConstraint(finite("score"), "score"),
        CheckConstraint(finite("threshold"), "threshold"),
        Index("shadow_scores_by_verdicts", "product", "version", "verdict", "champion_verdict"),
        Index(
            "shadow_scores_disagreeing",
            *("product", "version", "image_id"),
            sqlite_where=text("verdict <> champion_verdict"),
        ),
        {"sqlite_with_rowid": False},
    )

    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), primary_key=True)
    product: Mapped[str]
    version: Mapped[str] = mapped_column(primary_key=True)
    score: Mapped[float]
    threshold: Mapped[float]
    verdict: Mapped[str]
    champion_verdict: Mapped[str]


class ThresholdChoice(Base):
    """A false-alarm rate that a person chose for a product while it runs; rows are only ever added, the latest holds.

    `false_alarm_rate` NULL goes back to what the settings say.
    """

    __tablename__ = "threshold_choices"
    __table_args__ = (
        CheckConstraint("false_alarm_rate > 0 AND false_alarm_rate < 1", "false_alarm_rate"),
        Index(None, "product", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    product: Mapped[str]
    false_alarm_rate: Mapped[float | None]
    chosen_by: Mapped[str | None]
    chosen_at: Mapped[datetime]


class DriftEvent(Base):
    """A change of a product's drift state, as it happened; rows are only ever added, the latest holds.

    `first_image_id` is the image with which it began, `figures` the statistics as JSON.
    """

    __tablename__ = "drift_events"
    __table_args__ = (
        CheckConstraint(one_of("state", DriftState), "state"),
        CheckConstraint(one_of("cause", DriftCause), "cause"),
        Index(None, "product", "id"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    product: Mapped[str]
    version: Mapped[str]
    state: Mapped[str]
    cause: Mapped[str | None]
    first_image_id: Mapped[str | None]
    at: Mapped[datetime]
    figures: Mapped[str]


_views = MetaData()


def _view(name: str, columns: str) -> Table:
    return Table(name, _views, *(Column(column) for column in columns.split()))


# Read as they are: times are text here, as every reader of the file sees them.
results_view = _view(
    "results",
    "id product file_name path state verdict score threshold p_value model_version sha256 width height bytes"
    " received_at decided_at latency_ms label labelled_by labelled_at duplicate_of error_code error"
    " energy_wh",
)
energy_view = _view(
    "energy",
    "id kind started_at duration_s images cpu_wh gpu_wh ram_wh total_wh emissions_g source country",
)
model_versions_view = _view(
    "model_versions",
    "product version kind created_at state reason threshold image_auroc f1 false_alarm_rate training_wh images sha256",
)
regions_view = _view("regions", "image_id number x y width height area area_share peak mean")
review_queue_view = _view(
    "review_queue",
    "id product file_name path verdict score threshold p_value uncertain uncertainty received_at label",
)
labels_view = _view("labels", "id image_id product label labelled_by labelled_at source note")
retrainings_view = _view(
    "retrainings",
    "id product trigger state requested_at planned_at started_at ended_at champion challenger outcome reason report"
    " total_wh saved_g",
)
drift_view = _view("drift", "id product version state cause first_image_id at figures")
VIEWS = (
    results_view,
    energy_view,
    model_versions_view,
    regions_view,
    review_queue_view,
    labels_view,
    retrainings_view,
    drift_view,
)
