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


def _table(name: str, columns: dict[Any, str]) -> Table:
    """Return the table of these `columns`, names by type."""
    by_type = [(one, type) for type, names in columns.items() for one in names.split()]
    return Table(name, metadata, *(Column(one, type, primary_key=one == "id") for one, type in by_type))


# Energy of a micro-batch, of a stretch of idling, of a training or an evaluation. NULL is unknown.
energy_table = _table(
    "energy_rows",
    {
        Integer: "id images",
        Text: "kind source country",
        Float: "duration_s cpu_wh gpu_wh ram_wh total_wh emissions_g",
        UTCTime: "started_at",
    },
)
# An image that was dropped: its verdict, and where its file is (`path`) and should be, relative to ROOT.
images_table = _table(
    "images",
    {
        Text: "id product file_name path destination state verdict model_version sha256 mode duplicate_of"
        " error_code error",
        Float: "score threshold p_value latency_ms uncertainty brightness contrast sharpness",
        Integer: "width height attempts energy_id uncertain",
        BigInteger: "bytes",
        UTCTime: "received_at decided_at placed_at",
    },
)
# A part of an image above the pixel threshold, in pixels of the upright image; `number` 1 has the highest peak.
# Written with its image and never changed.
regions_table = _table(
    "region_rows", {Text: "image_id", Integer: "number x y width height area", Float: "area_share peak mean"}
)
# What a person said of an image; rows are only ever added, and the latest of an image holds. `label` NULL takes back
# what was said before; `source` is the way that it came (page, folder, command).
reviews_table = _table(
    "reviews", {Integer: "id", Text: "image_id label labelled_by source note", UTCTime: "labelled_at"}
)
# A model version that was published, and whether it is the champion of its product.
versions_table = _table(
    "versions",
    {
        Text: "product version kind state reason sha256",
        Float: "threshold image_auroc f1 false_alarm_rate training_wh",
        Integer: "images",
        UTCTime: "created_at",
    },
)
# A change of champion, as it happened; rows are only ever added. A rollback goes back along them.
promotions_table = _table("promotions", {Integer: "id", Text: "product version action reason", UTCTime: "at"})
# An image that a person vouched for, once per product and bytes; `label` NULL once that was taken back. `path` is its
# file, relative to ROOT, `image_id` the image it came from, NULL for an imported one. `role` never changes.
training_images_table = _table(
    "training_pictures",
    {Integer: "id", Text: "product sha256 label role path file_name image_id added_by", UTCTime: "taken_at added_at"},
)
# A retraining of one product: why, when, and what came of it. `review_id` is the latest review it knew of, `gate` the
# comparison that decided, as JSON, `report` a file below ROOT, `saved_g` an estimate of what choosing the hour saved.
retrainings_table = _table(
    "retraining_runs",
    {
        Integer: "id review_id",
        Text: "product trigger state champion challenger outcome reason gate report",
        Float: "total_wh saved_g",
        UTCTime: "requested_at planned_at started_at ended_at",
    },
)
# What the challenger `version` of `product` scored; `champion_verdict` is that of the image's own row, repeated so
# that an index holds where the two differ.
shadow_scores_table = _table(
    "shadow_scores", {Text: "image_id product version verdict champion_verdict", Float: "score threshold"}
)
# A false-alarm rate that a person chose for a product; rows are only ever added and the latest holds. NULL goes back
# to the settings.
thresholds_table = _table(
    "threshold_choices", {Integer: "id", Text: "product chosen_by", Float: "false_alarm_rate", UTCTime: "chosen_at"}
)
# A change of a product's drift state; rows are only ever added. `figures` are the statistics, as JSON.
drift_table = _table(
    "drift_events", {Integer: "id", Text: "product version state cause first_image_id figures", UTCTime: "at"}
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
