"""The tables and views by their columns, as the statements name them, and how a time is stored.

Constraints, indexes and NULL are the business of `migrations`; a test holds the columns and their types together.
The tables may change with a migration, the views may not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, Column, Dialect, Float, Integer, MetaData, Table, Text
from sqlalchemy.types import TypeDecorator

ImageState = Literal["scored", "placed", "quarantined", "missing", "conflict"]
Verdict = Literal["normal", "anomaly"]


def time_text(moment: datetime) -> str:
    """Return `moment` as it is stored: UTC, ISO 8601, fixed width, so that text order is time order.

    Raises ValueError for a time without a zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, found {moment!r}")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


class UTCTime(TypeDecorator[datetime]):
    """A UTC time, stored as text `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else time_text(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


metadata = MetaData()
_views = MetaData()


def _columns(type: Any, names: str) -> list[Column[Any]]:
    return [Column(name, type, primary_key=name == "id") for name in names.split()]


# Energy of a micro-batch, of a stretch of idling, of a training or an evaluation. NULL is unknown.
energy_table = Table(
    "energy_rows",
    metadata,
    *_columns(Integer, "id images"),
    *_columns(Text, "kind source country"),
    *_columns(Float, "duration_s cpu_wh gpu_wh ram_wh total_wh emissions_g"),
    *_columns(UTCTime, "started_at"),
)
# An image that was dropped: its verdict, and where its file is (`path`) and should be, relative to ROOT.
images_table = Table(
    "images",
    metadata,
    *_columns(Text, "id product file_name path destination state verdict model_version sha256 mode duplicate_of"),
    *_columns(Text, "error_code error"),
    *_columns(Float, "score threshold p_value latency_ms uncertainty brightness contrast sharpness"),
    *_columns(Integer, "width height attempts energy_id uncertain"),
    *_columns(BigInteger, "bytes"),
    *_columns(UTCTime, "received_at decided_at placed_at"),
)
# A part of an image above the pixel threshold, in pixels of the upright image; `number` 1 has the highest peak.
# Written with its image and never changed.
regions_table = Table(
    "region_rows",
    metadata,
    *_columns(Text, "image_id"),
    *_columns(Integer, "number x y width height area"),
    *_columns(Float, "area_share peak mean"),
)
# What a person said of an image; rows are only ever added, and the latest of an image holds. `label` NULL takes back
# what was said before; `source` is the way that it came (page, folder, command).
reviews_table = Table(
    "reviews",
    metadata,
    *_columns(Integer, "id"),
    *_columns(Text, "image_id label labelled_by source note"),
    *_columns(UTCTime, "labelled_at"),
)
# A model version that was published, and whether it is the champion of its product.
versions_table = Table(
    "versions",
    metadata,
    *_columns(Text, "product version kind state reason sha256"),
    *_columns(Float, "threshold image_auroc f1 false_alarm_rate training_wh"),
    *_columns(Integer, "images"),
    *_columns(UTCTime, "created_at"),
)
# A change of champion, as it happened; rows are only ever added. A rollback goes back along them.
promotions_table = Table(
    "promotions",
    metadata,
    *_columns(Integer, "id"),
    *_columns(Text, "product version action reason"),
    *_columns(UTCTime, "at"),
)
# An image that a person vouched for, once per product and bytes; `label` NULL once that was taken back. `path` is its
# file, relative to ROOT, `image_id` the image it came from, NULL for an imported one. `role` never changes.
training_images_table = Table(
    "training_pictures",
    metadata,
    *_columns(Integer, "id"),
    *_columns(Text, "product sha256 label role path file_name image_id added_by"),
    *_columns(UTCTime, "taken_at added_at"),
)
# A retraining of one product: why, when, and what came of it. `review_id` is the latest review it knew of, `gate` the
# comparison that decided, as JSON, `report` a file below ROOT, `saved_g` an estimate of what choosing the hour saved.
retrainings_table = Table(
    "retraining_runs",
    metadata,
    *_columns(Integer, "id review_id"),
    *_columns(Text, "product trigger state champion challenger outcome reason gate report"),
    *_columns(Float, "total_wh saved_g"),
    *_columns(UTCTime, "requested_at planned_at started_at ended_at"),
)
# What the challenger `version` of `product` scored; `champion_verdict` is that of the image's own row, repeated so
# that an index holds where the two differ.
shadow_scores_table = Table(
    "shadow_scores",
    metadata,
    *_columns(Text, "image_id product version verdict champion_verdict"),
    *_columns(Float, "score threshold"),
)
# A false-alarm rate that a person chose for a product; rows are only ever added and the latest holds. NULL goes back
# to the settings.
thresholds_table = Table(
    "threshold_choices",
    metadata,
    *_columns(Integer, "id"),
    *_columns(Text, "product chosen_by"),
    *_columns(Float, "false_alarm_rate"),
    *_columns(UTCTime, "chosen_at"),
)
# A change of a product's drift state; rows are only ever added. `figures` are the statistics, as JSON.
drift_table = Table(
    "drift_events",
    metadata,
    *_columns(Integer, "id"),
    *_columns(Text, "product version state cause first_image_id figures"),
    *_columns(UTCTime, "at"),
)


def _view(name: str, columns: str) -> Table:
    return Table(name, _views, *(Column(column) for column in columns.split()))


# Read as they are: times are text here, as every reader of the file sees them.
results_view = _view(
    "results",
    "id product file_name path state verdict score threshold p_value model_version sha256 width height bytes"
    " received_at decided_at latency_ms label labelled_by labelled_at duplicate_of error_code error"
    " energy_wh",
)
regions_view = _view("regions", "image_id number x y width height area area_share peak mean")
review_queue_view = _view(
    "review_queue", "id product file_name path verdict score threshold p_value uncertain uncertainty received_at label"
)
