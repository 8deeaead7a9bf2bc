"""The first schema: the tables, and the public views `results`, `energy` and `model_versions`."""

import sqlalchemy as sa
from alembic import op

from migrations.ddl import append_only, check, finite, one_of, only_where, whole

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The latest review of a picture is joined by its number, found in the index; so filters on `results` reach
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
    op.create_table(
        "energy_rows",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("cpu_wh", sa.Float),
        sa.Column("gpu_wh", sa.Float),
        sa.Column("ram_wh", sa.Float),
        sa.Column("total_wh", sa.Float),
        sa.Column("emissions_g", sa.Float),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("country", sa.Text),
        sa.PrimaryKeyConstraint("id"),
        check("energy_rows_kind", one_of("kind", "scoring", "idle", "training", "evaluation")),
        check("energy_rows_source", one_of("source", "measured", "estimated")),
        check("energy_rows_images", whole("images", 0)),
        check("energy_rows_duration", "duration_s >= 0"),
        check("energy_rows_total", "total_wh >= 0"),
    )
    op.create_index("energy_rows_by_started_at", "energy_rows", ["started_at"])

    op.create_table(
        "images",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text),
        sa.Column("score", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("p_value", sa.Float),
        sa.Column("model_version", sa.Text),
        sa.Column("sha256", sa.Text),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("mode", sa.Text),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("received_at", sa.Text, nullable=False),
        sa.Column("decided_at", sa.Text, nullable=False),
        sa.Column("placed_at", sa.Text),
        sa.Column("latency_ms", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("duplicate_of", sa.Text),
        sa.Column("error_code", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("energy_id", sa.Integer),
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
    for columns in (
        ["received_at", "id"],
        ["product", "received_at", "id"],
        ["product", "verdict", "received_at", "id"],
        ["verdict", "received_at", "id"],
        ["state", "received_at", "id"],
    ):
        op.create_index("images_by_" + "_".join(columns), "images", columns)
    op.create_index("images_by_sha256", "images", ["sha256"], **only_where("duplicate_of IS NULL"))

    op.create_table(
        "reviews",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("labelled_by", sa.Text),
        sa.Column("labelled_at", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.PrimaryKeyConstraint("id"),
        check("reviews_label", one_of("label", "normal", "anomaly")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="reviews_image_id"),
    )
    op.create_index("reviews_by_image_id", "reviews", ["image_id", "id"])
    append_only("reviews")

    op.create_table(
        "versions",
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("threshold", sa.Float),
        sa.Column("image_auroc", sa.Float),
        sa.Column("f1", sa.Float),
        sa.Column("false_alarm_rate", sa.Float),
        sa.Column("training_wh", sa.Float),
        sa.Column("images", sa.Integer),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("product", "version"),
        check("versions_state", one_of("state", "champion", "challenger", "retired", "rejected")),
        check("versions_images", whole("images", 0)),
        check("versions_sha256", "length(sha256) = 64"),
    )
    op.create_index(
        "versions_one_champion",
        "versions",
        ["product"],
        unique=True,
        **only_where("state = 'champion'"),
    )

    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("id"),
        check("promotions_action", one_of("action", "promote", "rollback")),
    )
    op.create_index("promotions_by_product_id", "promotions", ["product", "id"])
    append_only("promotions")

    for view in (RESULTS, ENERGY, MODEL_VERSIONS):
        op.execute(view)


def downgrade() -> None:
    raise NotImplementedError("there is nothing before the first schema")
