"""The rooms of the house, from the ground up: each module in its package, each package above all that it imports.

`problems` says what in a graph of imports breaks this order. It is pure: the tests give it the modules as they are, and
as they would be if one were moved.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "models", "migrations")

# Name of the room, by its package and, where one package holds several, a word for each; then its modules.
ROOMS: Mapping[str, str] = {
    "models (ground)": "detector errors progress",
    "models (image)": "appearance regions",
    "models (registry)": "manifest registry",
    "models.calibration": "split thresholds",
    "models.data": "datasets image_list select_images value_range",
    "models.networks": (
        "backbone classifier feature_autoencoder feature_detector pixel_autoencoder pretrained segmentation_head"
    ),
    "models.runtime": (
        "export load_detector load_network openvino_detector openvino_runtime stream_tuning torch_detector"
    ),
    "models.synthetic_defects": "draw fills foreground shapes",
    "models.evaluation": "bootstrap curves evaluate metrics pixel_histograms",
    "models.drift": "drift p_values",
    "models.fitting": (
        "augment classifier feature feature_cache fit_result limits logistic_regression optimise pixel "
        "segmentation_head trim warm_start"
    ),
    "models.training": "calibrate draft_check options ranges train",
    "migrations": "ddl env versions.0001_first versions.0002_regions_and_review_queue versions.0003_people_in_the_loop",
    "service (ground)": "errors root",
    "service (settings)": "names cron settings_file settings logs progress_bar",
    "service.filesystem": (
        "durable file_state lease lock_holders mount_table mounts odd_advice odd_entries open_below place "
        "process_lock row_path scan shared_folder"
    ),
    "service (instances)": "instances",
    "service.imaging": (
        "decode decode_error decoder decoder_processes decoder_server jpeg looks_whole open_image orientation overlay "
        "png read remark samples synthetic_parts tiff_pages tiff_pixels webp"
    ),
    "service.storage.database": "base chunks driver insert_new journal open postgresql schema sqlite write_ahead",
    "service.storage": (
        "drift energy energy_sample images regions retention retrainings review_pages reviews shadow states "
        "statistics tables thresholds training_images versions"
    ),
    "service.energy": "grid_intensity meter tracker",
    "service.scoring": (
        "active_versions decide detector_loader free_memory kept_graphs scorers shadow threshold_policy "
        "threshold_preview"
    ),
    "service.inspection": (
        "anomaly_maps batch claim deliver incoming_scan inspected_image intake pipeline private_copy record recover "
        "relocate score_batch settle sidecars turns watch workers"
    ),
    "service.labelling": "folder_index folder_labels folder_watch import_images label roles training_set",
    "service.training": "child job low_priority reproduce run",
    "service.evaluation": "learning_curve outcome plots report run text_report thumbnails worst_mistakes",
    "service.drift": "assess monitor",
    "service.retraining": (
        "due gate gate_report gate_scoring lock promotion retrain scheduler shadow_trial training_data"
    ),
    "service.operations": "backup check_rows checks doctor remove_file restore retention retention_plan",
    "service.daemon": "background_jobs daemon journal_care metering parts run systemd wake",
    "service.web (parts)": "charts connections errors formatting hourly_counts images prefix security sessions site",
    "service.web.pages": "energy files image login models promote review thresholds today",
    "service.web (app)": "api app",
    "service.commands": (
        "database demo doctor energy evaluate import_images init options results retention retrain review run score "
        "status threshold train versions web"
    ),
    "service (program)": "__main__ cli",
}

Imports = Mapping[str, frozenset[str]]
"""The modules of the project that each module imports, within functions and for types alone too."""


def problems(imports: Imports, rooms: Mapping[str, str]) -> list[str]:
    """Return what is wrong with `imports` by the order of `rooms`, package to its modules, lowest first."""
    home = {module: room for room in rooms for module in modules_in(room, rooms)}
    floor = {room: number for number, room in enumerate(rooms)}
    known = home.keys()
    found = [f"{module}: in no room; give it a place in ROOMS" for module in sorted(imports.keys() - known)]
    found += [f"{module}: in ROOMS, but not there" for module in sorted(known - imports.keys())]
    for module in sorted(imports.keys() & known):
        for other in sorted(imports[module] & known):
            if floor[home[other]] > floor[home[module]]:
                found.append(f"{module} ({home[module]}) imports {other} ({home[other]}), which is above it")
    return found + [f"a circle: {' -> '.join(circle)}" for circle in circles(imports)]


def modules_in(room: str, rooms: Mapping[str, str]) -> list[str]:
    """Return the dotted names of the modules of `room`."""
    return [f"{room.split()[0]}.{name}" for name in rooms[room].split()]


def circles(imports: Imports) -> Iterator[list[str]]:
    """Yield the ways from a module back to itself, one for each module that closes a circle."""
    done: set[str] = set()
    for start in sorted(imports):
        way: list[str] = []
        pending: list[tuple[str, bool]] = [(start, True)]
        while pending:
            module, enters = pending.pop()
            if not enters:
                way.pop()
                done.add(module)
            elif module in way:
                yield [*way[way.index(module) :], module]
            elif module not in done:
                way.append(module)
                pending.append((module, False))
                pending += [(other, True) for other in sorted(imports.get(module, ()))]


def read_imports() -> dict[str, frozenset[str]]:
    """Return what each module of the project imports of it, read from the source; packages' own files are left out."""
    paths = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    modules = {module_of(path) for path in paths if path.name != "__init__.py"}
    return {
        module_of(path): frozenset(names_in(path) & modules - {module_of(path)})
        for path in paths
        if path.name != "__init__.py"
    }


def module_of(path: Path) -> str:
    """Return the dotted name of the module at `path`."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def names_in(path: Path) -> set[str]:
    """Return every dotted name that the file at `path` imports, modules and what is taken from them alike."""
    return _imported(ast.walk(ast.parse(path.read_text())))


def names_at_import(path: Path) -> set[str]:
    """Return the dotted names that importing the file at `path` imports, those for types alone left out."""
    return _imported(ast.parse(path.read_text()).body)


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found
