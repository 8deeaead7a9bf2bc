"""Regions of images, the uncertain band, and the public views `regions` and `review_queue`.

Columns are added in place, so a database of a million images is not written anew; rows from before have NULL
in them, since what a band would have said of them is not known.
"""

import sqlalchemy as sa
from alembic import op

from migrations.ddl import check, columns, finite, on_sqlite, only_where, whole

revision = "0002"
down_revision = "0001"

REGIONS = """
CREATE VIEW regions AS
SELECT image_id, number, x, y, width, height, area, area_share, peak, mean
FROM region_rows
"""
# Ordered as it is to be read, and always from the index in that order: SQLite would rather sort all images of a
# product than pass over those of others. The latest review is found as in `results`.
REVIEW_QUEUE = """
CREATE VIEW review_queue AS
SELECT
    i.id, i.product, i.file_name, i.path, i.verdict, i.score, i.threshold, i.p_value,
    i.uncertain, i.uncertainty, i.received_at, r.label
FROM images AS i{index}
LEFT JOIN reviews AS r ON r.id = (SELECT max(latest.id) FROM reviews AS latest WHERE latest.image_id = i.id)
WHERE i.uncertainty IS NOT NULL AND i.state IN ('scored', 'placed') AND r.label IS NULL
ORDER BY i.uncertainty DESC, i.received_at DESC, i.id DESC
"""
LEAST = {"number": 1, "x": 0, "y": 0, "width": 1, "height": 1, "area": 1}


def upgrade() -> None:
    for column, kind, condition in (
        ("uncertain", "INTEGER", "uncertain IN (0, 1)"),
        ("uncertainty", "FLOAT", "uncertainty >= 0 AND uncertainty <= 1"),
    ):
        op.execute(f"ALTER TABLE images ADD COLUMN {column} {kind} CONSTRAINT images_{column} CHECK ({condition})")
    # The uncertain ones alone: few, so that other filters may be looked at one by one.
    op.create_index("images_uncertain_by_received_at", "images", ["received_at", "id"], **only_where("uncertain = 1"))
    # The review queue in its order, backwards; `product` lets the rows of others be passed over unread.
    queue = ["uncertainty", "received_at", "id", "product"]
    op.create_index("images_by_uncertainty", "images", queue, **only_where("uncertainty IS NOT NULL"))

    op.create_table(
        "region_rows",
        *columns(sa.Text, "image_id", null=False),
        *columns(sa.Integer, "number x y width height area", null=False),
        *columns(sa.Float, "area_share peak mean", null=False),
        sa.PrimaryKeyConstraint("image_id", "number"),
        *(check(f"region_rows_{name}", whole(name, least)) for name, least in LEAST.items()),
        check("region_rows_area_share", "area_share > 0 AND area_share <= 1"),
        check("region_rows_peak", finite("peak")),
        check("region_rows_mean", finite("mean")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="region_rows_image_id"),
        sqlite_with_rowid=False,
    )

    index = " INDEXED BY images_by_uncertainty" if on_sqlite() else ""
    for view in (REGIONS, REVIEW_QUEUE.format(index=index)):
        op.execute(view)


def downgrade() -> None:
    raise NotImplementedError("there is no way back but a backup")
