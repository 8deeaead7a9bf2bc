"""The first schema: the tables, and the public views `results`, `energy` and `model_versions`."""

import sqlalchemy as sa
from alembic import op

from migrations.ddl import append_only, check, columns, finite, one_of, only_where, whole

revision = "0001"
down_revision = None

# The latest review of an image is joined by its number, found in the index; so filters on `results` reach
# the indexes of `images`, and columns that are not asked for cost nothing.
RESULTS = """
CREATE VIEW results AS
SELECT
    i.id, i.product, i.file_name, i.path, i.state, i.verdict, i.score, i.threshold, i.p_value,
    i.model_version, i.sha256, i.width, i.height, i.bytes, i.received_at, i.decided_at, i.latency_ms,
    r.label, r.labelled_by, r.labelled_at,
    i.duplicate_of, i.error_code, i.error,
    e.total_wh / NULLIF(e.images, 0) AS energy_wh
FROM images AS i
LEFT JOIN reviews AS r ON r.id = (SELECT max(latest.id) FROM reviews AS latest WHERE latest.image_id = i.id)
LEFT JOIN energy_rows AS e ON e.id = i.energy_id
"""
ENERGY = """
CREATE VIEW energy AS
SELECT
    id, kind, started_at, duration_s, images, cpu_wh, gpu_wh, ram_wh, total_wh, emissions_g, source, country
FROM energy_rows
"""
MODEL_VERSIONS = """
CREATE VIEW model_versions AS
SELECT
    product, version, kind, created_at, state, reason, threshold, image_auroc, f1, false_alarm_rate,
    training_wh, images, sha256
FROM versions
"""


def upgrade() -> None:
    _make_energy_rows()
    _make_images()
    _make_reviews()
    _make_versions()
    _make_promotions()
    for view in (RESULTS, ENERGY, MODEL_VERSIONS):
        op.execute(view)


def _make_energy_rows() -> None:
    op.create_table(
        "energy_rows",
        *columns(sa.Integer, "id", null=False),
        *columns(sa.Text, "kind started_at", null=False),
        *columns(sa.Float, "duration_s", null=False),
        *columns(sa.Integer, "images", null=False),
        *columns(sa.Float, "cpu_wh gpu_wh ram_wh total_wh emissions_g"),
        *columns(sa.Text, "source", null=False),
        *columns(sa.Text, "country"),
        sa.PrimaryKeyConstraint("id"),
        check("energy_rows_kind", one_of("kind", "scoring", "idle", "training", "evaluation")),
        check("energy_rows_source", one_of("source", "measured", "estimated")),
        check("energy_rows_images", whole("images", 0)),
        check("energy_rows_duration", "duration_s >= 0"),
        check("energy_rows_total", "total_wh >= 0"),
    )
    op.create_index("energy_rows_by_started_at", "energy_rows", ["started_at"])


def _make_images() -> None:
    op.create_table(
        "images",
        *columns(sa.Text, "id product file_name path destination state", null=False),
        *columns(sa.Text, "verdict"),
        *columns(sa.Float, "score threshold p_value"),
        *columns(sa.Text, "model_version sha256"),
        *columns(sa.Integer, "width height"),
        *columns(sa.Text, "mode"),
        *columns(sa.BigInteger, "bytes"),
        *columns(sa.Text, "received_at decided_at", null=False),
        *columns(sa.Text, "placed_at"),
        *columns(sa.Float, "latency_ms"),
        *columns(sa.Integer, "attempts", null=False),
        *columns(sa.Text, "duplicate_of error_code error"),
        *columns(sa.Integer, "energy_id"),
        sa.PrimaryKeyConstraint("id"),
        check("images_state", one_of("state", "scored", "placed", "quarantined", "missing", "conflict")),
        check("images_verdict", one_of("verdict", "normal", "anomaly")),
        check("images_verdict_has_score", "verdict IS NULL OR (score IS NOT NULL AND threshold IS NOT NULL)"),
        check("images_score", finite("score")),
        check("images_threshold", finite("threshold")),
        check("images_p_value", "p_value >= 0 AND p_value <= 1"),
        check("images_sha256", "length(sha256) = 64"),
        check("images_width", whole("width", 1)),
        check("images_height", whole("height", 1)),
        check("images_bytes", whole("bytes", 0)),
        check("images_attempts", whole("attempts", 0)),
        sa.ForeignKeyConstraint(["energy_id"], ["energy_rows.id"], name="images_energy_id"),
    )
    # Each serves one filter of `images.search` in its order, newest first, without sorting.
    for indexed in (
        ["received_at", "id"],
        ["product", "received_at", "id"],
        ["product", "verdict", "received_at", "id"],
        ["verdict", "received_at", "id"],
        ["state", "received_at", "id"],
    ):
        op.create_index("images_by_" + "_".join(indexed), "images", indexed)
    # The earliest image with given bytes is the one that is no duplicate.
    op.create_index("images_by_sha256", "images", ["sha256"], **only_where("duplicate_of IS NULL"))


def _make_reviews() -> None:
    op.create_table(
        "reviews",
        *columns(sa.Integer, "id", null=False),
        *columns(sa.Text, "image_id", null=False),
        *columns(sa.Text, "label labelled_by"),
        *columns(sa.Text, "labelled_at source", null=False),
        *columns(sa.Text, "note"),
        sa.PrimaryKeyConstraint("id"),
        check("reviews_label", one_of("label", "normal", "anomaly")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="reviews_image_id"),
    )
    op.create_index("reviews_by_image_id", "reviews", ["image_id", "id"])
    append_only("reviews")


def _make_versions() -> None:
    op.create_table(
        "versions",
        *columns(sa.Text, "product version kind created_at state", null=False),
        *columns(sa.Text, "reason"),
        *columns(sa.Float, "threshold image_auroc f1 false_alarm_rate training_wh"),
        *columns(sa.Integer, "images"),
        *columns(sa.Text, "sha256", null=False),
        sa.PrimaryKeyConstraint("product", "version"),
        check("versions_state", one_of("state", "champion", "challenger", "retired", "rejected")),
        check("versions_images", whole("images", 0)),
        check("versions_sha256", "length(sha256) = 64"),
    )
    one = only_where("state = 'champion'")
    op.create_index("versions_one_champion", "versions", ["product"], unique=True, **one)


def _make_promotions() -> None:
    op.create_table(
        "promotions",
        *columns(sa.Integer, "id", null=False),
        *columns(sa.Text, "product version action at", null=False),
        *columns(sa.Text, "reason"),
        sa.PrimaryKeyConstraint("id"),
        check("promotions_action", one_of("action", "promote", "rollback")),
    )
    op.create_index("promotions_by_product_id", "promotions", ["product", "id"])
    append_only("promotions")


def downgrade() -> None:
    raise NotImplementedError("there is nothing before the first schema")
