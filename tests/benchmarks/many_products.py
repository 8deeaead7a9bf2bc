"""Images per second of the daemon with many products in random order, against the same images as one product.

Each product has a model of its own: copies of one trained version, one weight of each a little different, so that no
two share a graph. All images are dropped at once into a daemon at rest, which has loaded as many models as it wants to;
one product and many are measured in turn.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from models import registry
from service.instances import last_status
from service.storage import versions
from service.storage.database.open import open_database
from tests.benchmarks import captures
from tests.benchmarks.throughput import PATIENCE_S, last_placed, wait_until_idle
from tests.support.daemon_process import DaemonProcess, finished, wait_until

SEED = 5


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--products", type=int, default=50)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--models-loaded-max", type=int, help="the setting; the default if not given")
    parser.add_argument("--trained", type=Path, help="a root with such a model; it is copied instead of training one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.trained is not None:
            root = shutil.copytree(options.trained, Path(folder) / "root")
        else:
            root = captures.trained_root(Path(folder), options.profile, steps=60)
        names = [f"product-{number:03}" for number in range(options.products)]
        for number, name in enumerate(names):
            copy_version(root, name, number)
        if options.models_loaded_max is not None:
            (root / "tamis.toml").write_text(f"models_loaded_max = {options.models_loaded_max}\n")
        store = Path(folder) / "captures"
        store.mkdir()
        files = []
        for number, content in enumerate(captures.variants(options.images)):
            files.append(store / f"{number:05}.jpg")
            files[-1].write_bytes(content)
        rng = random.Random(SEED)
        pairs = []
        for _ in range(options.pairs):
            one = serve(root, files, names[:1] * len(files))
            many = serve(root, files, [rng.choice(names) for _ in files])
            pairs.append(
                {
                    "one": one,
                    "many": many,
                    "ratio": many["images_per_s"] / one["images_per_s"],
                    "cpu_ratio": one["cpu_ms"] / many["cpu_ms"],
                }
            )
    captures.report(
        {
            "benchmark": "many_products",
            "products": options.products,
            "images": options.images,
            "profile": options.profile,
            "models_loaded_max": options.models_loaded_max,
            "pairs": pairs,
            "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
            "load_average": psutil.getloadavg(),
        },
        options.output,
    )


def copy_version(root: Path, product: str, number: int) -> None:
    """Register as champion of `product` a copy of the version of `default`, with one weight a little different."""
    [source] = (root / "models" / "default").iterdir()
    build = root / "models" / f"{registry.BUILD_PREFIX}{product}"
    registry.share_files(source, build)
    weights = bytearray((source / registry.GRAPH_WEIGHTS).read_bytes())
    # The lowest bits of one float in the middle, by a different amount for each product.
    weights[len(weights) // 8 * 4 : len(weights) // 8 * 4 + 2] = (number + 1).to_bytes(2, "little")
    manifest = json.loads((source / registry.MANIFEST).read_text())
    manifest["product"] = product
    for name, content in ((registry.GRAPH_WEIGHTS, bytes(weights)), (registry.MANIFEST, b"")):
        (build / name).unlink()
        (build / name).write_bytes(content)
    manifest["files"][registry.GRAPH_WEIGHTS] = registry.file_sha256(build / registry.GRAPH_WEIGHTS)
    (build / registry.MANIFEST).write_text(json.dumps(manifest))
    published = registry.publish(build, root / "models")
    with open_database(root) as engine, engine.begin() as connection:
        versions.register(
            connection,
            product=product,
            version=published.version,
            kind=published.kind,
            created_at=datetime.now(UTC),
            state="champion",
            reason=None,
            threshold=manifest["calibration"]["threshold"],
            false_alarm_rate=manifest["calibration"]["false_alarm_rate"],
            image_auroc=None,
            f1=None,
            training_wh=None,
            images=None,
            sha256=published.sha256,
        )


def serve(root: Path, files: list[Path], products: list[str]) -> dict[str, Any]:
    """Drop each of `files` for its product; images per second, from the first drop to the last file placed."""
    captures.empty(root)
    for product in products:
        (root / "incoming" / product).mkdir(exist_ok=True)
    with DaemonProcess(root) as process:
        ready_s = process.wait_ready()
        wait_until_idle(process.process.pid)
        held = wait_until_loaded(root)
        cpu_before = cpu_s(process.process.pid)
        began = time.time()
        for path, product in zip(files, products, strict=True):
            path.rename(root / "incoming" / product / path.name)
        wait_until(lambda: finished(root) == len(files), "all placed", PATIENCE_S, poll_s=0.5)
        cpu_ms = (cpu_s(process.process.pid) - cpu_before) * 1000 / len(files)
        rss = psutil.Process(process.process.pid).memory_info().rss
        assert process.stop() == 0, process.log_text()
    took = last_placed(root) - began
    for path in files:
        [placed] = [*root.glob(f"normal/*/*/{path.stem}.*"), *root.glob(f"anomaly/*/*/{path.stem}.*")]
        placed.rename(path)
    return {
        "images_per_s": len(files) / took,
        "cpu_ms": cpu_ms,
        "ready_s": ready_s,
        "models": held,
        "rss_mb": rss / 1e6,
    }


def cpu_s(pid: int) -> float:
    """Seconds of a core that the daemon and the processes that decode for it have taken: unlike a rate, the same on a
    busy machine.
    """
    daemon = psutil.Process(pid)
    times = [one.cpu_times() for one in (daemon, *daemon.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def wait_until_loaded(root: Path) -> int:
    """Wait until the number of models in memory has not changed for 5 s; return it, 0 where the daemon does not say."""
    held, since = models_in_memory(root), time.monotonic()
    while time.monotonic() - since < 5.0:
        time.sleep(0.5)
        if (now := models_in_memory(root)) != held:
            held, since = now, time.monotonic()
    return held


def models_in_memory(root: Path) -> int:
    return int(last_status(root, "main").get("models_in_memory", 0))


if __name__ == "__main__":
    main()
