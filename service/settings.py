"""Every setting, with its default, unit and meaning; owns where a value came from.

Options of a command go over `TAMIS_*` environment variables, those over `ROOT/tamis.toml`.
"""

from __future__ import annotations

import difflib
import functools
import glob
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from service.errors import ConfigurationError, RootMissing
from service.logs import warn_before_start
from service.names import composed
from service.root import SETTINGS_FILE
from service.settings_file import ENVIRONMENT_PREFIX, read_toml, variables_of_services

log = logging.getLogger(__name__)

TRAINING_FALSE_ALARM_RATE = 0.01
DECODE_THREADS_MAX = 16
FOUND_CHARACTERS_MAX = 200


def _check_range(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError("expected [low, high], the first the lower")
    return ends


# One in a million: a rate of that takes a million normal images to calibrate.
Rate = Annotated[float, Field(ge=1e-6, lt=1)]
Cost = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Days = Annotated[float, Field(gt=0, le=36_500)]
Gigabytes = Annotated[float, Field(gt=0, le=1_000_000)]
Band = Annotated[float, Field(ge=1, le=1000)]
Suffix = Annotated[str, Field(pattern=r"^\.[^./\x00]{1,15}$")]
Range = Annotated[tuple[float, float], AfterValidator(_check_range)]
PolicyName = Literal["false_alarm_rate", "f1", "cost", "fixed"]
# What each policy needs; `f1` and `cost` also need a model with scores of known anomalies.
POLICY_NEEDS: dict[str, tuple[str, ...]] = {
    "fixed": ("threshold_fixed",),
    "cost": ("cost_of_miss", "cost_of_false_alarm", "anomaly_prevalence"),
}

# docs/deployment.md says whose each is. None may be the name that somebody gives to an image.
IGNORED_NAMES = (
    # Hidden: what file servers, synchronisers and desktops keep for themselves.
    ".*",
    # Not yet whole.
    *("*.part", "*.partial", "*.filepart", "*.crdownload", "*.opdownload", "*.download", "*.tmp", "*.temp"),
    *("*.upload", "*.uploading", "*.!sync", "*.syncpart", "*.synctemp", "*.aria2", "rclone-chunked-upload-*"),
    # Of editors and of those who hold a file.
    *("*~", "*.swp", "~$*", "~syncthing~*", "*.lock", "*.lck", "*.rclonelink"),
    # Of NAS systems, Windows, macOS and file systems.
    *(
        "@eaDir",
        "@tmp",
        "@sharebin",
        "#recycle",
        "#snapshot",
        "@Recycle",
        "@__thumb",
        "@Recently-Snapshot",
        "~snapshot",
    ),
    *("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "Thumbs.db:*", "ehthumbs*.db", "desktop.ini"),
    *("Icon\r", "__MACOSX", "Network Trash Folder", "Temporary Items", "lost+found"),
)


PAGES = ("api", "energy", "images", "login", "logout", "models", "review", "static", "thresholds", "who")
"""How the paths of the page's own addresses begin."""

IMAGE_SUFFIXES = (".bmp", ".dng", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ProductSettings(BaseModel):
    """What one product sets differently, each as the setting of that name: `[products.NAME]` in `tamis.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    false_alarm_rate: Rate | None = None
    threshold_policy: PolicyName | None = None
    threshold_fixed: float | None = None
    cost_of_miss: Cost | None = None
    cost_of_false_alarm: Cost | None = None
    anomaly_prevalence: Rate | None = None
    uncertain_band: Band | None = None
    value_range: Range | None = None


class Settings(BaseSettings):
    """The settings of one root. Each field's description and default are the documentation's source."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    # The instance
    instance: str = Field("main", description="name of this daemon; its claims lie in processing/<instance>")
    share_root: bool = Field(False, description="allow daemons of other names on the same root")

    # Database
    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL database of this root, `postgresql://user@host/name`; if it has a password, rather set "
        "TAMIS_DATABASE_URL than write it here; without it, tamis.db in the root",
    )

    # Watching
    watch_mode: Literal["auto", "events", "polling"] = Field(
        "auto", description="file events, polling, or events where the file system sends them"
    )
    settle_time_s: Seconds = Field(
        1.0, description="s a file must stay unchanged before it is claimed; once set, after its writer closed it too"
    )
    truncated_wait_s: float = Field(
        10.0, ge=0, le=3600, description="s a file that seems cut off must stay unchanged before it is claimed"
    )
    rescan_interval_s: Seconds = Field(30.0, description="s between scans of the folder with file events")
    poll_interval_s: Seconds = Field(2.0, description="s between scans of the folder without file events")
    empty_file_timeout_s: float = Field(600.0, gt=0, le=31_536_000, description="s until an empty file is quarantined")
    ignored_names: tuple[str, ...] = Field(
        IGNORED_NAMES, description="shell patterns of file and folder names to ignore; replaces the default"
    )
    sidecars: Literal["ignore", "carry", "quarantine"] = Field(
        "ignore",
        description="what becomes of files that writers put beside images: they stay, go along with their image, or "
        "are quarantined",
    )
    sidecar_suffixes: tuple[Suffix, ...] = Field(
        (".json", ".xml", ".txt"), description="how the names of such files end, in any case of letters"
    )

    # Decoding
    file_bytes_max: int = Field(200_000_000, gt=0, description="bytes; a larger file is quarantined unread")
    pixels_max: int = Field(60_000_000, gt=0, description="pixels; a larger image is quarantined before decoding")
    decode_threads: int = Field(
        0, ge=0, le=64, description="processes that decode images; 0 is one a core, from 2 to 16"
    )
    decode_timeout_s: float = Field(
        30.0, ge=1, le=3600, description="s after which the process of an image still decoding is ended"
    )
    attempts_max: int = Field(
        3, ge=1, le=20, description="tries at an image that ends its decoder or the daemon, then quarantine"
    )

    # Scoring
    batch_size_max: int = Field(
        0, ge=0, le=256, description="images in a micro-batch, at most; 0 is what 0.2 s score, measured at the start"
    )
    batch_wait_ms: float = Field(20.0, ge=0, le=60_000, description="ms a decoded image waits for its batch to fill")
    in_flight_max: int = Field(64, ge=1, le=4096, description="images claimed and not yet placed, at most")
    scoring_threads: int = Field(
        0, ge=0, le=256, description="threads of the scoring graph; 0 is one a core, or fewer if that measures faster"
    )
    models_loaded_max: int = Field(
        0,
        ge=0,
        description="models held in memory, at most; the least used one goes; 0 is what half of the memory free at the "
        "start holds, from 4 to 64",
    )
    graph_cache_bytes_max: int = Field(
        2_000_000_000,
        ge=0,
        description="bytes of compiled graphs kept in the root, by which a model is in memory sooner; 0 keeps none",
    )
    false_alarm_rate: Rate | None = Field(
        None,
        description="share of normal images that may be called anomalies; sets the threshold; if not set, the rate "
        "that the model was trained for, 0.01 unless `tamis train` was asked for another",
    )
    threshold_policy: PolicyName = Field(
        "false_alarm_rate",
        description="what sets the threshold: the false-alarm rate, the best F1 or the least cost on known anomalies, "
        "or a fixed score",
    )
    threshold_fixed: float | None = Field(
        None, description="with policy `fixed`, the score above which an image is an anomaly"
    )
    cost_of_miss: Cost | None = Field(None, description="with policy `cost`, the cost of a missed anomaly, in any unit")
    cost_of_false_alarm: Cost | None = Field(
        None, description="with policy `cost`, the cost of a false alarm, in the unit of `cost_of_miss`"
    )
    anomaly_prevalence: Rate | None = Field(
        None,
        description="share of anomalies among the images to come, for the policies `cost` and `f1`; `f1` without it "
        "takes their share among the known scores",
    )
    uncertain_band: Band = Field(
        3.0,
        description="factor on the false-alarm rate: how near to the threshold an image is uncertain and goes to "
        "review first; 1 is no band",
    )
    anomaly_maps: bool = Field(True, description="write maps/<id>.png for each anomaly and each uncertain image")

    value_range: Range | None = Field(
        None,
        description="values of images of more than 8 bits that become black and white, `[low, high]`, from the next "
        "training on; if not set, they are measured then over its images",
    )

    # Retraining
    burst_gap_s: float = Field(
        1.0, ge=0, le=86_400, description="s; images of a product closer together are near-copies and share a role"
    )
    retrain_cron: str | None = Field(
        "0 2 * * 0",
        description="when to retrain, minute hour day month weekday in local time, as in a crontab; products without "
        "new labels are skipped; empty is never",
    )
    retrain_after_labels: int = Field(0, ge=0, description="new labels that retrain a product at once; 0 is never")
    retrain_minutes_max: float = Field(60.0, gt=0, le=10_080, description="minutes that a retraining may take")
    retrain_memory_gb: Gigabytes = Field(6.0, description="GB of memory that a retraining may take")
    retrain_energy_max_wh: float | None = Field(None, gt=0, description="Wh after which a retraining is ended")
    retrain_fresh: bool = Field(False, description="retrain from zero and not from the champion's weights")
    trim_fraction: float = Field(
        0.02, ge=0, lt=0.5, description="share of images, the worst rebuilt, left out of a retraining as mislabelled"
    )
    retrain_carbon_file: Path | None = Field(
        None, description="CSV of grid intensity by hour; a scheduled retraining waits for the greenest hours"
    )
    retrain_deadline_h: float = Field(
        24.0, gt=0, le=720, description="hours that a scheduled retraining may wait for greener power"
    )
    promote_automatically: bool = Field(True, description="promote a challenger that passed the gate, without a person")
    promotion_margin: float = Field(
        0.01, ge=0, lt=1, description="how much worse, in any figure of the gate, still counts as not worse"
    )
    shadow_hours: float = Field(
        0.0, ge=0, le=8760, description="hours that a challenger scores beside the champion before it may be promoted"
    )
    shadow_share: float = Field(
        0.25, gt=0, le=1, description="share of images that a shadow challenger scores, at most"
    )

    # Drift
    drift_window: int = Field(200, ge=20, le=10_000, description="latest images of a product that show drift")
    drift_retrain: bool = Field(False, description="retrain a product that begins to drift, if it has new labels")

    # Web page
    web_host: str = Field("127.0.0.1", description="address that `tamis web` listens on")
    web_port: int = Field(8080, ge=1, le=65_535, description="port that `tamis web` listens on")
    web_hosts: tuple[str, ...] = Field(
        (), description="names, beside localhost and web_host, under which browsers may open the page"
    )
    web_path_prefix: str = Field(
        "", description="path under which a reverse proxy shows the page, such as /tamis; empty is a host of its own"
    )
    web_password: SecretStr | None = Field(
        None, description="password for the page and its API; better as TAMIS_WEB_PASSWORD than in the file"
    )
    web_user_header: str | None = Field(None, description="header where a reverse proxy names the user; trusted as is")

    # Retention
    keep_normal_days: Days | None = Field(
        None, description="days after which files of normal verdict without a label are removed; rows stay"
    )
    keep_anomaly_days: Days | None = Field(
        None, description="days after which files of anomaly verdict without a label are removed; rows stay"
    )
    keep_normal_gb: Gigabytes | None = Field(
        None, description="GB of files of normal verdict, beyond which the oldest without a label are removed"
    )
    keep_anomaly_gb: Gigabytes | None = Field(
        None, description="GB of files of anomaly verdict, beyond which the oldest without a label are removed"
    )

    # Keeping safe
    free_bytes_min: int = Field(500_000_000, ge=0, description="bytes free on the root's disk; below it claiming stops")
    free_inodes_min: int = Field(1000, ge=0, description="inodes free on the root's disk; below it claiming stops")

    # Energy
    energy_tracking: Literal["process", "machine"] = Field(
        "process", description="meter what this process uses, or the whole machine"
    )
    energy_country: str | None = Field(
        None, pattern=r"^[A-Z]{3}$", description="ISO 3166 alpha-3 code of the grid; without it CO2e is unknown"
    )
    energy_cpu_max_w: float | None = Field(
        None, gt=0, le=100_000, description="W of the processor at full load, where it cannot be measured or looked up"
    )
    energy_idle_row_s: float = Field(300.0, gt=0, le=86_400, description="s of idling in one row of energy, at most")

    # Logs
    log_format: Literal["plain", "json"] = Field("plain", description="a line for people or for machines")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")

    # Products
    products: dict[str, ProductSettings] = Field(
        default_factory=dict, description="per product, what it sets differently: [products.NAME]"
    )

    @field_validator("instance")
    @classmethod
    def _instance_is_a_plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", value):
            raise ValueError(
                f"expected at most 63 letters, digits, '_', '.', '-', the first a letter or digit; found {value!r}"
            )
        return value

    @field_validator("web_path_prefix")
    @classmethod
    def _prefix_is_a_path_of_its_own(cls, value: str) -> str:
        path = value.removesuffix("/")
        if path and not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", path):
            raise ValueError(f"expected a path such as /tamis, of letters, digits, '-', '_', '.', '~'; found {value!r}")
        if path.split("/")[1:2] and path.split("/")[1] in PAGES:
            raise ValueError(f"expected a path that is not one of the page's own, {', '.join(PAGES)}; found {value!r}")
        return path

    @field_validator("sidecar_suffixes")
    @classmethod
    def _sidecars_are_no_images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        images = [suffix for suffix in value if suffix.lower() in IMAGE_SUFFIXES]
        if images:
            raise ValueError(f"expected suffixes that no image has; found {images[0]!r}")
        return value

    @field_validator("products")
    @classmethod
    def _products_are_compared_composed(cls, value: dict[str, ProductSettings]) -> dict[str, ProductSettings]:
        return {composed(product): own for product, own in value.items()}

    @field_validator("retrain_cron")
    @classmethod
    def _cron_has_times(cls, value: str | None) -> str | None:
        if value:
            from service.cron import parse_cron

            parse_cron(value)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Any,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` hands over the file's table among the options: a class of its own for each root takes 30 ms to make.
        table = init_settings.init_kwargs.pop(SETTINGS_FILE, {})
        ours = os.environ.keys() - set(variables_of_services())
        env_settings.env_vars = {name.lower(): os.environ[name] for name in ours}  # type: ignore[attr-defined]
        return init_settings, env_settings, InitSettingsSource(settings_cls, table)

    @property
    def names_to_ignore(self) -> tuple[str, ...]:
        """The patterns of all names that are no images: `ignored_names`, and sidecars unless they are quarantined."""
        ends = () if self.sidecars == "quarantine" else self.sidecar_suffixes
        return (*self.ignored_names, *(f"*{glob.escape(end)}" for end in ends))

    @property
    def decoders(self) -> int:
        """The number of threads that decode: as set, else one for each core that this process may use, from 2 to 16."""
        # Two at the least, so that one image on a slow disk holds up no other.
        return self.decode_threads or min(max(2, len(os.sched_getaffinity(0))), DECODE_THREADS_MAX)

    def of(self, product: str, name: str) -> Any:
        """Return the setting `name` for `product`: its own, else that of all."""
        own = self.products.get(product)
        value = getattr(own, name) if own else None
        return getattr(self, name) if value is None else value

    def false_alarm_rate_of(self, product: str, trained: float = TRAINING_FALSE_ALARM_RATE) -> float:
        """Return the false-alarm rate for `product`: its own, else that of all, else the one it was `trained` for."""
        rate = self.of(product, "false_alarm_rate")
        return trained if rate is None else float(rate)


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))


def load(root: Path, **options: Any) -> Settings:
    """Return the settings of `root`, with `options` that are not None on top.

    Raises ConfigurationError naming the field, what was expected and what was found.
    """
    path = root / SETTINGS_FILE
    if not path.is_file():
        lacking = f"no {SETTINGS_FILE} in it" if root.is_dir() else "no such folder"
        raise RootMissing(f"root {root}: {lacking}; make one with `tamis init {root}`")
    table = read_toml(path)
    _refuse_unknown(table, path)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        loaded = Settings(**given | {SETTINGS_FILE: table})
    except ValidationError as error:
        raise ConfigurationError(_describe(error, path)) from None
    except SettingsError as error:
        # A variable of a list or a table; the message names the setting alone.
        raise ConfigurationError(f'TAMIS_* variables: expected JSON, such as ["a"]; found: {error}') from None
    _refuse_unmet_policies(loaded, path)
    _warn_of_services(tuple(variables_of_services()), loaded.log_format)
    return loaded


def origins(root: Path) -> dict[str, str]:
    """Return for each setting where its value came from: `default`, `tamis.toml` or `TAMIS_…`."""
    table = read_toml(root / SETTINGS_FILE)
    found = {}
    variables = {name.upper() for name in os.environ.keys() - set(variables_of_services())}
    for name in Settings.model_fields:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if any(key == variable or key.startswith(variable + "__") for key in variables):
            found[name] = variable
        else:
            found[name] = SETTINGS_FILE if name in table else "default"
    return found


def _refuse_unknown(table: dict[str, Any], path: Path) -> None:
    known = set(Settings.model_fields)
    for name in table:
        if name not in known:
            raise ConfigurationError(f"{path}: unknown setting {name!r}{_suggestion(name, known)}")
    for variable in sorted(os.environ.keys() - set(variables_of_services())):
        if not variable.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable[len(ENVIRONMENT_PREFIX) :].lower().split("__")[0]
        if name not in known | {"root"}:
            raise ConfigurationError(f"environment: unknown setting {variable}{_suggestion(name, known)}")


@functools.cache
def _warn_of_services(variables: tuple[str, ...], log_format: str) -> None:
    if variables:
        more = f" and {len(variables) - 1} more" if len(variables) > 1 else ""
        warn_before_start(
            log,
            log_format,
            f"environment: {variables[0]}{more}: expected settings; found what Kubernetes or Docker make for a service"
            " of this name; ignored. Another name of the service, or enableServiceLinks: false, leaves them out",
        )


def _refuse_unmet_policies(settings: Settings, path: Path) -> None:
    for product in (None, *sorted(settings.products)):
        # No product has the empty name, so this asks for what holds for all.
        policy = settings.of(product or "", "threshold_policy")
        missing = [name for name in POLICY_NEEDS.get(policy, ()) if settings.of(product or "", name) is None]
        if missing:
            whose = "" if product is None else f" of product {product}"
            raise ConfigurationError(
                f"{path} and TAMIS_* variables: threshold_policy {policy!r}{whose}: expected"
                f" {', '.join(POLICY_NEEDS[policy])}; found no {', no '.join(missing)}"
            )


def _suggestion(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; docs/settings.md lists them all"


def _describe(error: ValidationError, path: Path) -> str:
    problems = "; ".join(_describe_one(problem["loc"], problem) for problem in error.errors())
    return f"{path} and TAMIS_* variables: {problems}"


def _describe_one(where: tuple[int | str, ...], problem: Mapping[str, Any]) -> str:
    if where and where[0] in SECRETS:
        # Neither the value nor what stands inside it, were it a table.
        where = where[:1]
    found = "something else, not shown here"
    # What is not known may be a secret in the wrong place, and tables and lists may hold one.
    if not (where and where[0] in SECRETS) and problem["type"] != "extra_forbidden":
        value = problem["input"]
        holds_others = isinstance(value, dict | list | tuple)
        found = "a table or a list" if holds_others else repr(value)[:FOUND_CHARACTERS_MAX]
    return f"setting {'.'.join(map(str, where))}: {problem['msg']}; found {found}"
