"""What people say and what follows from it: training set, retrainings, shadow scores, thresholds chosen, drift.

Columns are added in place; rows from before have NULL in them, since how bright an image was is not known any more.
"""

import sqlalchemy as sa
from alembic import op

from migrations.ddl import check, columns, finite, only_where

revision = "0003"
down_revision = "0002"

VERDICTS = "'normal', 'anomaly'"

VIEWS = (
    """
CREATE VIEW labels AS
SELECT r.id, r.image_id, i.product, r.label, r.labelled_by, r.labelled_at, r.source, r.note
FROM reviews AS r JOIN images AS i ON i.id = r.image_id
""",
    """
CREATE VIEW retrainings AS
SELECT
    id, product, trigger, state, requested_at, planned_at, started_at, ended_at, champion, challenger, outcome, reason,
    report, total_wh, saved_g
FROM retraining_runs
""",
    """
CREATE VIEW drift AS
SELECT id, product, version, state, cause, first_image_id, at, figures
FROM drift_events
""",
)


def upgrade() -> None:
    _extend_images()
    _make_training_pictures()
    _make_retraining_runs()
    _make_shadow_scores()
    _make_threshold_choices()
    _make_drift_events()
    for view in VIEWS:
        op.execute(view)


def _extend_images() -> None:
    for column in ("brightness", "contrast", "sharpness"):
        op.execute(f"ALTER TABLE images ADD COLUMN {column} FLOAT CONSTRAINT images_{column} CHECK ({finite(column)})")

    # The files that are there, oldest first, with their sizes; and those that a crash left on their way out.
    placed = ["verdict", "received_at", "id", "bytes", "state"]
    op.create_index("images_placed", "images", placed, **only_where("state = 'placed'"))
    removing = only_where("error_code = 'removing_by_retention'")
    op.create_index("images_being_removed", "images", ["id"], **removing)
    # Those with the bytes of another: few, and asked for where a label holds for bytes or a file was renamed.
    op.create_index("images_by_duplicate_of", "images", ["duplicate_of"], **only_where("duplicate_of IS NOT NULL"))


def _make_training_pictures() -> None:
    op.create_table(
        "training_pictures",
        sa.Column("id", sa.Integer, primary_key=True),
        *columns(sa.Text, "product sha256", null=False),
        *columns(sa.Text, "label role"),
        *columns(sa.Text, "path file_name", null=False),
        *columns(sa.Text, "image_id"),
        *columns(sa.Text, "taken_at added_at", null=False),
        *columns(sa.Text, "added_by"),
        check("training_pictures_label", f"label IN ({VERDICTS})"),
        check("training_pictures_role", "role IN ('train', 'calibrate', 'golden')"),
        check("training_pictures_sha256", "length(sha256) = 64"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="training_pictures_image_id"),
    )
    op.create_index("training_pictures_once", "training_pictures", ["product", "sha256"], unique=True)
    op.create_index("training_pictures_by_product_taken_at", "training_pictures", ["product", "taken_at"])
    op.create_index("training_pictures_by_image_id", "training_pictures", ["image_id"])


def _make_retraining_runs() -> None:
    op.create_table(
        "retraining_runs",
        sa.Column("id", sa.Integer, primary_key=True),
        *columns(sa.Text, "product trigger state requested_at", null=False),
        *columns(sa.Text, "planned_at started_at ended_at"),
        *columns(sa.Integer, "review_id"),
        *columns(sa.Text, "champion challenger outcome reason gate report"),
        *columns(sa.Float, "total_wh saved_g"),
        check("retraining_runs_trigger", "trigger IN ('cron', 'labels', 'drift', 'command')"),
        check("retraining_runs_state", "state IN ('waiting', 'running', 'done', 'failed', 'stopped')"),
        check("retraining_runs_outcome", "outcome IN ('promoted', 'challenger', 'rejected', 'skipped')"),
    )
    op.create_index("retraining_runs_by_product_id", "retraining_runs", ["product", "id"])


def _make_shadow_scores() -> None:
    op.create_table(
        "shadow_scores",
        *columns(sa.Text, "image_id product version", null=False),
        *columns(sa.Float, "score threshold", null=False),
        *columns(sa.Text, "verdict champion_verdict", null=False),
        sa.PrimaryKeyConstraint("image_id", "version"),
        check("shadow_scores_verdict", f"verdict IN ({VERDICTS})"),
        check("shadow_scores_champion_verdict", f"champion_verdict IN ({VERDICTS})"),
        check("shadow_scores_score", finite("score")),
        check("shadow_scores_threshold", finite("threshold")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="shadow_scores_image_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("shadow_scores_by_verdicts", "shadow_scores", ["product", "version", "verdict", "champion_verdict"])
    differing = only_where("verdict <> champion_verdict")
    op.create_index("shadow_scores_disagreeing", "shadow_scores", ["product", "version", "image_id"], **differing)


def _make_threshold_choices() -> None:
    op.create_table(
        "threshold_choices",
        sa.Column("id", sa.Integer, primary_key=True),
        *columns(sa.Text, "product", null=False),
        *columns(sa.Float, "false_alarm_rate"),
        *columns(sa.Text, "chosen_by"),
        *columns(sa.Text, "chosen_at", null=False),
        check("threshold_choices_false_alarm_rate", "false_alarm_rate > 0 AND false_alarm_rate < 1"),
    )
    op.create_index("threshold_choices_by_product_id", "threshold_choices", ["product", "id"])


def _make_drift_events() -> None:
    op.create_table(
        "drift_events",
        sa.Column("id", sa.Integer, primary_key=True),
        *columns(sa.Text, "product version state", null=False),
        *columns(sa.Text, "cause first_image_id"),
        *columns(sa.Text, "at figures", null=False),
        check("drift_events_state", "state IN ('steady', 'drifting')"),
        check("drift_events_cause", "cause IN ('light', 'defects', 'unknown')"),
    )
    op.create_index("drift_events_by_product_id", "drift_events", ["product", "id"])


def downgrade() -> None:
    raise NotImplementedError("there is no way back but a backup")
