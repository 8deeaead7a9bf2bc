"""What a challenger in the shadow costs: the daemon with and without one at a share of 0.25, in turn, same files.

The challenger is the champion's files under another name, so it costs as much an image. Measured are images per second
with everything dropped at once, where the challenger rests while files wait, and the latency and the share that it
really scored with the images paced at shares of that rate.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models import registry
from service.storage import versions
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, wait_until

PATIENCE_S = 900.0
CHALLENGER = "challenger"


def challenge(root: Path) -> None:
    """Register the champion's files a second time, as a challenger made now."""
    [folder] = (root / "models" / "default").iterdir()
    build = root / "models" / ".tmp-challenger"
    registry.share_files(folder, build)
    manifest = json.loads((build / registry.MANIFEST).read_text())
    now = datetime.now(UTC)
    (build / registry.MANIFEST).unlink()
    (build / registry.MANIFEST).write_text(
        json.dumps({**manifest, "version": CHALLENGER, "created_at": now.isoformat()})
    )
    published = registry.publish(build, root / "models")
    engine = open_database(root)
    with engine.begin() as connection:
        champion = versions.champion(connection, "default")
        assert champion is not None
        versions.register(
            connection,
            product="default",
            version=CHALLENGER,
            kind=champion.kind,
            created_at=now,
            state="challenger",
            reason=None,
            threshold=champion.threshold,
            false_alarm_rate=champion.false_alarm_rate,
            image_auroc=None,
            f1=None,
            training_wh=None,
            images=champion.images,
            sha256=published.sha256,
        )
    engine.dispose()


def run(root: Path, files: list[Path], share: float | None, images_per_s: float | None) -> dict[str, Any]:
    """Drop `files` at `images_per_s`, None at once, into a daemon with a challenger at `share`, None without."""
    captures.empty(root)
    environment = {"TAMIS_RESCAN_INTERVAL_S": "1"}
    if share is not None:
        environment |= {"TAMIS_SHADOW_HOURS": "24", "TAMIS_SHADOW_SHARE": str(share)}
    with DaemonProcess(root, environment=environment) as process:
        process.wait_ready()
        if share is not None:
            wait_until(lambda: "in the shadow" in process.log_text(), "the challenger loaded")
        began = time.perf_counter()
        for number, path in enumerate(files):
            path.rename(root / "incoming" / f"{number:05}.jpg")
            if images_per_s is not None:
                time.sleep(max(0.0, began + (number + 1) / images_per_s - time.perf_counter()))
        wait_until(lambda: finished(root) == len(files), "all placed", PATIENCE_S, poll_s=0.5)
        ended = time.perf_counter()
        assert process.stop() == 0, process.log_text()
    for number, path in enumerate(files):
        [placed] = [*root.glob(f"normal/*/*/{number:05}.*"), *root.glob(f"anomaly/*/*/{number:05}.*")]
        placed.rename(path)
    with sqlite3.connect(root / "tamis.db") as connection:
        latencies = [row[0] for row in connection.execute("SELECT latency_ms FROM images")]
        shadowed = connection.execute("SELECT count(*) FROM shadow_scores").fetchone()[0]
    return {
        "images_per_s": len(files) / (ended - began),
        "latency_ms_p50": captures.percentile(latencies, 0.5),
        "latency_ms_p95": captures.percentile(latencies, 0.95),
        "shadowed_share": shadowed / len(files),
    }


def paired(root: Path, files: list[Path], share: float, images_per_s: float | None, pairs: int) -> dict[str, Any]:
    """Return `pairs` of runs without and with the challenger, and the medians of their ratios."""
    found = [
        {"without": run(root, files, None, images_per_s), "with": run(root, files, share, images_per_s)}
        for _ in range(pairs)
    ]

    def ratio(name: str) -> float:
        return statistics.median(pair["with"][name] / pair["without"][name] for pair in found)

    return {
        "offered_images_per_s": images_per_s,
        "pairs": found,
        "median_ratio": ratio("images_per_s"),
        "median_latency_p50_ratio": ratio("latency_ms_p50"),
        "median_latency_p95_ratio": ratio("latency_ms_p95"),
        "median_shadowed_share": statistics.median(pair["with"]["shadowed_share"] for pair in found),
    }


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.8], help="shares of the rate without")
    parser.add_argument("--profile", default="fast")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = captures.trained_root(Path(folder), options.profile, steps=100, full_size=True)
        challenge(root)
        store = Path(folder) / "captures"
        store.mkdir()
        files = []
        for number, content in enumerate(captures.variants(options.images)):
            files.append(store / f"{number:05}.jpg")
            files[-1].write_bytes(content)
        at_once = paired(root, files, options.share, None, options.pairs)
        rate = statistics.median(pair["without"]["images_per_s"] for pair in at_once["pairs"])
        captures.report(
            {
                "benchmark": "shadow",
                "images": options.images,
                "size": "1500x1000",
                "profile": options.profile,
                "share": options.share,
                "at_once": at_once,
                "paced": {
                    f"{load:g}": paired(root, files, options.share, load * rate, options.pairs)
                    for load in options.loads
                },
            },
            options.output,
        )


if __name__ == "__main__":
    main()
