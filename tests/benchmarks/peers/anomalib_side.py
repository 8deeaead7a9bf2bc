"""anomalib's half of the comparison, a process for each job: train and export, or infer; JSON in a file, JSON out.

Called by `python -m tests.benchmarks.peers` with the Python of the peers' environment.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import metering


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train, export and judge `job["peer"]`; return where the graph is, its AUROC, and what training took."""
    import anomalib_models
    import lightning
    import torch
    from anomalib.data import Folder
    from anomalib.deploy import OpenVINOInferencer
    from anomalib.engine import Engine
    from sklearn.metrics import roc_auc_score

    torch.set_num_threads(job["threads"])
    lightning.seed_everything(job["seed"])
    if job["quick_coreset"]:
        anomalib_models.quick_coreset()
    folder = Path(job["folder"])
    model = anomalib_models.make(job["peer"], job["strides"])
    # No workers: on two cores eight processes that decode would fight the one that computes.
    data = Folder(
        name="peers",
        root=job["images"],
        normal_dir="normal",
        abnormal_dir="abnormal",
        normal_test_dir="normal_test",
        num_workers=0,
        seed=job["seed"],
    )
    engine = Engine(accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False)

    def fit() -> int:
        engine.fit(model, datamodule=data)
        return len(data.train_data)

    took = metering.measured(fit)
    path, way = anomalib_models.export(engine, model, folder, Path(job["capture"]))
    labels, paths = zip(*((label, Path(path)) for path, label in job["test"]), strict=True)
    inferencer = OpenVINOInferencer(path, device="CPU")
    shown = [float(inferencer.predict(image).pred_score.squeeze()) for image in paths]
    raw = _raw_scores(model, paths)
    return {
        "graph": str(path),
        "export": way,
        "training": took,
        # The graph's scores are clamped to 0..1, which makes ties; the scores before that are fairer to the peer.
        "image_auroc": float(roc_auc_score(labels, raw)),
        "image_auroc_of_graph": float(roc_auc_score(labels, shown)),
        "memory_bank": list(model.model.memory_bank.shape) if job["peer"] == "patchcore" else None,
    }


def infer(job: dict[str, Any]) -> dict[str, Any]:
    """Say of each image of `job["captures"]` whether it is an anomaly, by anomalib's inferencer; return the cost."""
    metering.keep_to_cores(job["threads"])
    from anomalib.deploy import OpenVINOInferencer

    inferencer = OpenVINOInferencer(job["graph"], device="CPU", config={"INFERENCE_NUM_THREADS": job["threads"]})
    captures = [Path(path) for path in job["captures"]]
    for path in captures[: job["warm_up"]]:
        inferencer.predict(path)
    verdicts = []

    def work() -> int:
        verdicts.extend(bool(inferencer.predict(path).pred_label.squeeze()) for path in captures)
        return len(verdicts)

    return {**metering.measured(work), "anomalies": sum(verdicts)}


def _raw_scores(model: Any, paths: Any) -> list[float]:
    import torch
    from anomalib.data.utils import read_image

    model.eval()
    with torch.inference_mode():
        return [
            float(model.model(model.pre_processor(read_image(path, as_tensor=True)[None])).pred_score.squeeze())
            for path in paths
        ]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    result = {"train": train, "infer": infer}[job["do"]](job)
    Path(sys.argv[2]).write_text(json.dumps({**result, "process_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
