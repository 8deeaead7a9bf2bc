CREATE TABLE energy_rows (
    id INTEGER NOT NULL, 
    kind TEXT NOT NULL, 
    started_at TEXT NOT NULL, 
    duration_s FLOAT NOT NULL, 
    images INTEGER NOT NULL, 
    cpu_wh FLOAT, 
    gpu_wh FLOAT, 
    ram_wh FLOAT, 
    total_wh FLOAT, 
    emissions_g FLOAT, 
    source TEXT NOT NULL, 
    country TEXT, 
    PRIMARY KEY (id), 
    CONSTRAINT energy_rows_kind CHECK (kind IN ('scoring', 'idle', 'training', 'evaluation')), 
    CONSTRAINT energy_rows_source CHECK (source IN ('measured', 'estimated')), 
    CONSTRAINT energy_rows_images CHECK (images IS NULL OR (typeof(images) = 'integer' AND images >= 0)), 
    CONSTRAINT energy_rows_duration CHECK (duration_s >= 0), 
    CONSTRAINT energy_rows_total CHECK (total_wh >= 0)
);

CREATE INDEX energy_rows_by_started_at ON energy_rows (started_at);

CREATE TABLE images (
    id TEXT NOT NULL, 
    product TEXT NOT NULL, 
    file_name TEXT NOT NULL, 
    path TEXT NOT NULL, 
    destination TEXT NOT NULL, 
    state TEXT NOT NULL, 
    verdict TEXT, 
    score FLOAT, 
    threshold FLOAT, 
    p_value FLOAT, 
    model_version TEXT, 
    sha256 TEXT, 
    width INTEGER, 
    height INTEGER, 
    mode TEXT, 
    bytes BIGINT, 
    received_at TEXT NOT NULL, 
    decided_at TEXT NOT NULL, 
    placed_at TEXT, 
    latency_ms FLOAT, 
    attempts INTEGER NOT NULL, 
    duplicate_of TEXT, 
    error_code TEXT, 
    error TEXT, 
    energy_id INTEGER, 
    PRIMARY KEY (id), 
    CONSTRAINT images_state CHECK (state IN ('scored', 'placed', 'quarantined', 'missing', 'conflict')), 
    CONSTRAINT images_verdict CHECK (verdict IN ('normal', 'anomaly')), 
    CONSTRAINT images_verdict_has_score CHECK (verdict IS NULL OR (score IS NOT NULL AND threshold IS NOT NULL)), 
    CONSTRAINT images_score CHECK (score IS NULL OR (typeof(score) = 'real' AND abs(score) <= 1.7976931348623157e308)), 
    CONSTRAINT images_threshold CHECK (threshold IS NULL OR (typeof(threshold) = 'real' AND abs(threshold) <= 1.7976931348623157e308)), 
    CONSTRAINT images_p_value CHECK (p_value >= 0 AND p_value <= 1), 
    CONSTRAINT images_sha256 CHECK (length(sha256) = 64), 
    CONSTRAINT images_width CHECK (width IS NULL OR (typeof(width) = 'integer' AND width >= 1)), 
    CONSTRAINT images_height CHECK (height IS NULL OR (typeof(height) = 'integer' AND height >= 1)), 
    CONSTRAINT images_bytes CHECK (bytes IS NULL OR (typeof(bytes) = 'integer' AND bytes >= 0)), 
    CONSTRAINT images_attempts CHECK (attempts IS NULL OR (typeof(attempts) = 'integer' AND attempts >= 0)), 
    CONSTRAINT images_energy_id FOREIGN KEY(energy_id) REFERENCES energy_rows (id)
);

CREATE INDEX images_by_received_at_id ON images (received_at, id);

CREATE INDEX images_by_product_received_at_id ON images (product, received_at, id);

CREATE INDEX images_by_product_verdict_received_at_id ON images (product, verdict, received_at, id);

CREATE INDEX images_by_verdict_received_at_id ON images (verdict, received_at, id);

CREATE INDEX images_by_state_received_at_id ON images (state, received_at, id);

CREATE INDEX images_by_sha256 ON images (sha256) WHERE duplicate_of IS NULL;

CREATE TABLE reviews (
    id INTEGER NOT NULL, 
    image_id TEXT NOT NULL, 
    label TEXT, 
    labelled_by TEXT, 
    labelled_at TEXT NOT NULL, 
    source TEXT NOT NULL, 
    note TEXT, 
    PRIMARY KEY (id), 
    CONSTRAINT reviews_label CHECK (label IN ('normal', 'anomaly')), 
    CONSTRAINT reviews_image_id FOREIGN KEY(image_id) REFERENCES images (id)
);

CREATE INDEX reviews_by_image_id ON reviews (image_id, id);

CREATE TRIGGER reviews_refuse_update BEFORE UPDATE ON reviews BEGIN SELECT RAISE(ABORT, 'reviews is append-only'); END;

CREATE TRIGGER reviews_refuse_delete BEFORE DELETE ON reviews BEGIN SELECT RAISE(ABORT, 'reviews is append-only'); END;

CREATE TABLE versions (
    product TEXT NOT NULL, 
    version TEXT NOT NULL, 
    kind TEXT NOT NULL, 
    created_at TEXT NOT NULL, 
    state TEXT NOT NULL, 
    reason TEXT, 
    threshold FLOAT, 
    image_auroc FLOAT, 
    f1 FLOAT, 
    false_alarm_rate FLOAT, 
    training_wh FLOAT, 
    images INTEGER, 
    sha256 TEXT NOT NULL, 
    PRIMARY KEY (product, version), 
    CONSTRAINT versions_state CHECK (state IN ('champion', 'challenger', 'retired', 'rejected')), 
    CONSTRAINT versions_images CHECK (images IS NULL OR (typeof(images) = 'integer' AND images >= 0)), 
    CONSTRAINT versions_sha256 CHECK (length(sha256) = 64)
);

CREATE UNIQUE INDEX versions_one_champion ON versions (product) WHERE state = 'champion';

CREATE TABLE promotions (
    id INTEGER NOT NULL, 
    product TEXT NOT NULL, 
    version TEXT NOT NULL, 
    action TEXT NOT NULL, 
    at TEXT NOT NULL, 
    reason TEXT, 
    PRIMARY KEY (id), 
    CONSTRAINT promotions_action CHECK (action IN ('promote', 'rollback'))
);

CREATE INDEX promotions_by_product_id ON promotions (product, id);

CREATE TRIGGER promotions_refuse_update BEFORE UPDATE ON promotions BEGIN SELECT RAISE(ABORT, 'promotions is append-only'); END;

CREATE TRIGGER promotions_refuse_delete BEFORE DELETE ON promotions BEGIN SELECT RAISE(ABORT, 'promotions is append-only'); END;

CREATE VIEW results AS
SELECT
    i.id, i.product, i.file_name, i.path, i.state, i.verdict, i.score, i.threshold, i.p_value,
    i.model_version, i.sha256, i.width, i.height, i.bytes, i.received_at, i.decided_at, i.latency_ms,
    r.label, r.labelled_by, r.labelled_at,
    i.duplicate_of, i.error_code, i.error,
    e.total_wh / NULLIF(e.images, 0) AS energy_wh
FROM images AS i
LEFT JOIN reviews AS r ON r.id = (SELECT max(latest.id) FROM reviews AS latest WHERE latest.image_id = i.id)
LEFT JOIN energy_rows AS e ON e.id = i.energy_id;

CREATE VIEW energy AS
SELECT
    id, kind, started_at, duration_s, images, cpu_wh, gpu_wh, ram_wh, total_wh, emissions_g, source, country
FROM energy_rows;

CREATE VIEW model_versions AS
SELECT
    product, version, kind, created_at, state, reason, threshold, image_auroc, f1, false_alarm_rate,
    training_wh, images, sha256
FROM versions;

ALTER TABLE images ADD COLUMN uncertain INTEGER CONSTRAINT images_uncertain CHECK (uncertain IN (0, 1));

ALTER TABLE images ADD COLUMN uncertainty FLOAT CONSTRAINT images_uncertainty CHECK (uncertainty >= 0 AND uncertainty <= 1);

CREATE INDEX images_uncertain_by_received_at ON images (received_at, id) WHERE uncertain = 1;

CREATE INDEX images_by_uncertainty ON images (uncertainty, received_at, id, product) WHERE uncertainty IS NOT NULL;

CREATE TABLE region_rows (
    image_id TEXT NOT NULL, 
    number INTEGER NOT NULL, 
    x INTEGER NOT NULL, 
    y INTEGER NOT NULL, 
    width INTEGER NOT NULL, 
    height INTEGER NOT NULL, 
    area INTEGER NOT NULL, 
    area_share FLOAT NOT NULL, 
    peak FLOAT NOT NULL, 
    mean FLOAT NOT NULL, 
    PRIMARY KEY (image_id, number), 
    CONSTRAINT region_rows_number CHECK (number IS NULL OR (typeof(number) = 'integer' AND number >= 1)), 
    CONSTRAINT region_rows_x CHECK (x IS NULL OR (typeof(x) = 'integer' AND x >= 0)), 
    CONSTRAINT region_rows_y CHECK (y IS NULL OR (typeof(y) = 'integer' AND y >= 0)), 
    CONSTRAINT region_rows_width CHECK (width IS NULL OR (typeof(width) = 'integer' AND width >= 1)), 
    CONSTRAINT region_rows_height CHECK (height IS NULL OR (typeof(height) = 'integer' AND height >= 1)), 
    CONSTRAINT region_rows_area CHECK (area IS NULL OR (typeof(area) = 'integer' AND area >= 1)), 
    CONSTRAINT region_rows_area_share CHECK (area_share > 0 AND area_share <= 1), 
    CONSTRAINT region_rows_peak CHECK (peak IS NULL OR (typeof(peak) = 'real' AND abs(peak) <= 1.7976931348623157e308)), 
    CONSTRAINT region_rows_mean CHECK (mean IS NULL OR (typeof(mean) = 'real' AND abs(mean) <= 1.7976931348623157e308)), 
    CONSTRAINT region_rows_image_id FOREIGN KEY(image_id) REFERENCES images (id)
)
 WITHOUT ROWID;

CREATE VIEW regions AS
SELECT image_id, number, x, y, width, height, area, area_share, peak, mean
FROM region_rows;

CREATE VIEW review_queue AS
SELECT
    i.id, i.product, i.file_name, i.path, i.verdict, i.score, i.threshold, i.p_value,
    i.uncertain, i.uncertainty, i.received_at, r.label
FROM images AS i INDEXED BY images_by_uncertainty
LEFT JOIN reviews AS r ON r.id = (SELECT max(latest.id) FROM reviews AS latest WHERE latest.image_id = i.id)
WHERE i.uncertainty IS NOT NULL AND i.state IN ('scored', 'placed') AND r.label IS NULL
ORDER BY i.uncertainty DESC, i.received_at DESC, i.id DESC;

ALTER TABLE images ADD COLUMN brightness FLOAT CONSTRAINT images_brightness CHECK (brightness IS NULL OR (typeof(brightness) = 'real' AND abs(brightness) <= 1.7976931348623157e308));

ALTER TABLE images ADD COLUMN contrast FLOAT CONSTRAINT images_contrast CHECK (contrast IS NULL OR (typeof(contrast) = 'real' AND abs(contrast) <= 1.7976931348623157e308));

ALTER TABLE images ADD COLUMN sharpness FLOAT CONSTRAINT images_sharpness CHECK (sharpness IS NULL OR (typeof(sharpness) = 'real' AND abs(sharpness) <= 1.7976931348623157e308));

CREATE INDEX images_placed ON images (verdict, received_at, id, bytes, state) WHERE state = 'placed';

CREATE INDEX images_being_removed ON images (id) WHERE error_code = 'removing_by_retention';

CREATE INDEX images_by_duplicate_of ON images (duplicate_of) WHERE duplicate_of IS NOT NULL;

CREATE TABLE training_pictures (
    id INTEGER NOT NULL, 
    product TEXT NOT NULL, 
    sha256 TEXT NOT NULL, 
    label TEXT, 
    role TEXT, 
    path TEXT NOT NULL, 
    file_name TEXT NOT NULL, 
    image_id TEXT, 
    taken_at TEXT NOT NULL, 
    added_at TEXT NOT NULL, 
    added_by TEXT, 
    PRIMARY KEY (id), 
    CONSTRAINT training_pictures_label CHECK (label IN ('normal', 'anomaly')), 
    CONSTRAINT training_pictures_role CHECK (role IN ('train', 'calibrate', 'golden')), 
    CONSTRAINT training_pictures_sha256 CHECK (length(sha256) = 64), 
    CONSTRAINT training_pictures_image_id FOREIGN KEY(image_id) REFERENCES images (id)
);

CREATE UNIQUE INDEX training_pictures_once ON training_pictures (product, sha256);

CREATE INDEX training_pictures_by_product_taken_at ON training_pictures (product, taken_at);

CREATE INDEX training_pictures_by_image_id ON training_pictures (image_id);

CREATE TABLE retraining_runs (
    id INTEGER NOT NULL, 
    product TEXT NOT NULL, 
    "trigger" TEXT NOT NULL, 
    state TEXT NOT NULL, 
    requested_at TEXT NOT NULL, 
    planned_at TEXT, 
    started_at TEXT, 
    ended_at TEXT, 
    review_id INTEGER, 
    champion TEXT, 
    challenger TEXT, 
    outcome TEXT, 
    reason TEXT, 
    gate TEXT, 
    report TEXT, 
    total_wh FLOAT, 
    saved_g FLOAT, 
    PRIMARY KEY (id), 
    CONSTRAINT retraining_runs_trigger CHECK (trigger IN ('cron', 'labels', 'drift', 'command')), 
    CONSTRAINT retraining_runs_state CHECK (state IN ('waiting', 'running', 'done', 'failed', 'stopped')), 
    CONSTRAINT retraining_runs_outcome CHECK (outcome IN ('promoted', 'challenger', 'rejected', 'skipped'))
);

CREATE INDEX retraining_runs_by_product_id ON retraining_runs (product, id);

CREATE TABLE shadow_scores (
    image_id TEXT NOT NULL, 
    product TEXT NOT NULL, 
    version TEXT NOT NULL, 
    score FLOAT NOT NULL, 
    threshold FLOAT NOT NULL, 
    verdict TEXT NOT NULL, 
    champion_verdict TEXT NOT NULL, 
    PRIMARY KEY (image_id, version), 
    CONSTRAINT shadow_scores_verdict CHECK (verdict IN ('normal', 'anomaly')), 
    CONSTRAINT shadow_scores_champion_verdict CHECK (champion_verdict IN ('normal', 'anomaly')), 
    CONSTRAINT shadow_scores_score CHECK (score IS NULL OR (typeof(score) = 'real' AND abs(score) <= 1.7976931348623157e308)), 
    CONSTRAINT shadow_scores_threshold CHECK (threshold IS NULL OR (typeof(threshold) = 'real' AND abs(threshold) <= 1.7976931348623157e308)), 
    CONSTRAINT shadow_scores_image_id FOREIGN KEY(image_id) REFERENCES images (id)
)
 WITHOUT ROWID;

CREATE INDEX shadow_scores_by_verdicts ON shadow_scores (product, version, verdict, champion_verdict);

CREATE INDEX shadow_scores_disagreeing ON shadow_scores (product, version, image_id) WHERE verdict <> champion_verdict;

CREATE TABLE threshold_choices (
    id INTEGER NOT NULL, 
    product TEXT NOT NULL, 
    false_alarm_rate FLOAT, 
    chosen_by TEXT, 
    chosen_at TEXT NOT NULL, 
    PRIMARY KEY (id), 
    CONSTRAINT threshold_choices_false_alarm_rate CHECK (false_alarm_rate > 0 AND false_alarm_rate < 1)
);

CREATE INDEX threshold_choices_by_product_id ON threshold_choices (product, id);

CREATE TABLE drift_events (
    id INTEGER NOT NULL, 
    product TEXT NOT NULL, 
    version TEXT NOT NULL, 
    state TEXT NOT NULL, 
    cause TEXT, 
    first_image_id TEXT, 
    at TEXT NOT NULL, 
    figures TEXT NOT NULL, 
    PRIMARY KEY (id), 
    CONSTRAINT drift_events_state CHECK (state IN ('steady', 'drifting')), 
    CONSTRAINT drift_events_cause CHECK (cause IN ('light', 'defects', 'unknown'))
);

CREATE INDEX drift_events_by_product_id ON drift_events (product, id);

CREATE VIEW labels AS
SELECT r.id, r.image_id, i.product, r.label, r.labelled_by, r.labelled_at, r.source, r.note
FROM reviews AS r JOIN images AS i ON i.id = r.image_id;

CREATE VIEW retrainings AS
SELECT
    id, product, trigger, state, requested_at, planned_at, started_at, ended_at, champion, challenger, outcome, reason,
    report, total_wh, saved_g
FROM retraining_runs;

CREATE VIEW drift AS
SELECT id, product, version, state, cause, first_image_id, at, figures
FROM drift_events;

