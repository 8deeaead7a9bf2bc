"""What people say and what follows from it: training set, retrainings, shadow scores, thresholds chosen, drift.

Columns are added in place; rows from before have NULL in them, since how bright a picture was is not known any more.
"""

import sqlalchemy as sa
from alembic import op

from migrations.ddl import check, finite, only_where

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

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
    for column in ("brightness", "contrast", "sharpness"):
        op.execute(f"ALTER TABLE images ADD COLUMN {column} FLOAT CONSTRAINT images_{column} CHECK ({finite(column)})")

    # The files that are there, oldest first, with their sizes; and those that a crash left on their way out.
    op.create_index(
        "images_placed",
        "images",
        ["verdict", "received_at", "id", "bytes", "state"],
        **only_where("state = 'placed'"),
    )
    op.create_index(
        "images_being_removed",
        "images",
        ["id"],
        **only_where("error_code = 'removing_by_retention'"),
    )
    op.create_index("images_by_duplicate_of", "images", ["duplicate_of"], **only_where("duplicate_of IS NOT NULL"))

    op.create_table(
        "training_pictures",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("role", sa.Text),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text),
        sa.Column("taken_at", sa.Text, nullable=False),
        sa.Column("added_at", sa.Text, nullable=False),
        sa.Column("added_by", sa.Text),
        check("training_pictures_label", f"label IN ({VERDICTS})"),
        check("training_pictures_role", "role IN ('train', 'calibrate', 'golden')"),
        check("training_pictures_sha256", "length(sha256) = 64"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="training_pictures_image_id"),
    )
    op.create_index("training_pictures_once", "training_pictures", ["product", "sha256"], unique=True)
    op.create_index("training_pictures_by_product_taken_at", "training_pictures", ["product", "taken_at"])
    op.create_index("training_pictures_by_image_id", "training_pictures", ["image_id"])

    op.create_table(
        "retraining_runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("requested_at", sa.Text, nullable=False),
        sa.Column("planned_at", sa.Text),
        sa.Column("started_at", sa.Text),
        sa.Column("ended_at", sa.Text),
        sa.Column("review_id", sa.Integer),
        sa.Column("champion", sa.Text),
        sa.Column("challenger", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("gate", sa.Text),
        sa.Column("report", sa.Text),
        sa.Column("total_wh", sa.Float),
        sa.Column("saved_g", sa.Float),
        check("retraining_runs_trigger", "trigger IN ('cron', 'labels', 'drift', 'command')"),
        check("retraining_runs_state", "state IN ('waiting', 'running', 'done', 'failed', 'stopped')"),
        check("retraining_runs_outcome", "outcome IN ('promoted', 'challenger', 'rejected', 'skipped')"),
    )
    op.create_index("retraining_runs_by_product_id", "retraining_runs", ["product", "id"])

    op.create_table(
        "shadow_scores",
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("champion_verdict", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("image_id", "version"),
        check("shadow_scores_verdict", f"verdict IN ({VERDICTS})"),
        check("shadow_scores_champion_verdict", f"champion_verdict IN ({VERDICTS})"),
        check("shadow_scores_score", finite("score")),
        check("shadow_scores_threshold", finite("threshold")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="shadow_scores_image_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("shadow_scores_by_verdicts", "shadow_scores", ["product", "version", "verdict", "champion_verdict"])
    op.create_index(
        "shadow_scores_disagreeing",
        "shadow_scores",
        ["product", "version", "image_id"],
        **only_where("verdict <> champion_verdict"),
    )

    op.create_table(
        "threshold_choices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("false_alarm_rate", sa.Float),
        sa.Column("chosen_by", sa.Text),
        sa.Column("chosen_at", sa.Text, nullable=False),
        check("threshold_choices_false_alarm_rate", "false_alarm_rate > 0 AND false_alarm_rate < 1"),
    )
    op.create_index("threshold_choices_by_product_id", "threshold_choices", ["product", "id"])

    op.create_table(
        "drift_events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("first_image_id", sa.Text),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("figures", sa.Text, nullable=False),
        check("drift_events_state", "state IN ('steady', 'drifting')"),
        check("drift_events_cause", "cause IN ('light', 'defects', 'unknown')"),
    )
    op.create_index("drift_events_by_product_id", "drift_events", ["product", "id"])

    for view in VIEWS:
        op.execute(view)


def downgrade() -> None:
    raise NotImplementedError("there is no way back but a backup")
