"""The folders and the fixed names of a root.

Imports nothing of the service, so that every module may import it. docs/architecture.md says what each is for.
"""

from __future__ import annotations

SETTINGS_FILE = "tamis.toml"
DATABASE_FILE = "tamis.db"
DATABASE_OWNER_FILE = ".database"
"""Which PostgreSQL database belongs to the root."""

DEFAULT_PRODUCT = "default"
"""The product of files right under `incoming/`; its champion serves products without one of their own."""

INCOMING = "incoming"
PROCESSING = "processing"
NORMAL = "normal"
ANOMALY = "anomaly"
QUARANTINE = "quarantine"
MAPS = "maps"
MODELS = "models"
TRAINING = "training"
REPORTS = "reports"

FOLDERS = (INCOMING, PROCESSING, NORMAL, ANOMALY, QUARANTINE, MAPS, MODELS, TRAINING)
"""The folders that `tamis init` makes."""

KINDS = (NORMAL, ANOMALY, QUARANTINE)
"""The folders into which images are sorted."""

THUMBNAILS = f"{MAPS}/.thumbs"

GRAPHS = ".cache/graphs"
"""Compiled graphs; nothing is lost when they are removed."""

# Within `processing/<instance>/`.
INSTANCE_LOCK = ".lock"
INSTANCE_STATUS = ".status.json"

RESTORED_MARK = ".restored"
"""Tells the next start to look through the folders, as after `tamis db restore`."""

# Within `processing/`.
RETENTION_LAST_RUN = ".retention.json"
RETENTION_LOCK = ".retention.lock"

# Within `models/`.
RETRAINING_LOCK = ".retrain.lock"
