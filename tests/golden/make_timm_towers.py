"""Run timm's own vision towers on seeded weights and keep what OpenVLA takes from them.

Ran with Python 3.11, torch 2.13.0 (CPU), timm 1.0.31, torchvision 0.28.0, numpy 2.4.6, in an environment of its own:

    python -m tests.golden.make_timm_towers

Each tower is one of OpenVLA's two architectures: once small, and once at its true width with the fewest blocks that
keep one in use. OpenVLA takes the output of the last block but one, without the final norm and the prefix tokens.
Weights are `seeded_weight(tower, key, shape)` under the checkpoint's keys, where LayerScale is `scale_factor` and not
timm's `gamma`; the input is `seeded_tensor(f"{tower}/pixel_values", (1, 3, size, size), 2.0)`.

`<tower>/spec` is JSON. `<tower>/float32` and `<tower>/float64` are the features [row_step * i, column_step * j],
from the same weights and input at both precisions.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .seeded import seeded_tensor, seeded_weight
from .storage import write_npz
from .torchvision_ops import import_torchvision

FOLDER: Final = Path(__file__).parent
DINO: Final = "vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP: Final = "vit_so400m_patch14_siglip_224"


@dataclass(frozen=True)
class Spec:
    """What timm is asked to build, and how finely its output is kept."""

    tower: str
    timm_model_id: str
    image_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    row_step: int
    column_step: int


SPECS: Final = [
    Spec("dino_small", DINO, 56, 64, 3, 4, 256, 1, 1),
    Spec("siglip_small", SIGLIP, 56, 72, 3, 4, 269, 1, 1),
    Spec("dino_wide", DINO, 112, 1024, 2, 16, 4096, 7, 4),
    Spec("siglip_wide", SIGLIP, 112, 1152, 2, 16, 4304, 7, 4),
]


def build(spec: Spec) -> nn.Module:
    """The tower in float32 with seeded weights; the erf GELU is named because versions of timm differ on it."""
    import_torchvision()
    timm: Any = importlib.import_module("timm")
    model: nn.Module = timm.create_model(
        spec.timm_model_id,
        pretrained=False,
        num_classes=0,
        img_size=spec.image_size,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        act_layer=nn.GELU,
    )
    weights = {}
    for key, value in model.state_dict().items():
        ours = key.replace(".gamma", ".scale_factor")
        weights[key] = torch.from_numpy(seeded_weight(spec.tower, ours, tuple(value.shape)))
    model.load_state_dict(weights)
    check(spec, model)
    return model.eval()


def check(spec: Spec, model: nn.Module) -> None:
    """The facts a re-implementation relies on."""
    block = model.get_submodule("blocks.0")
    fc1 = block.get_submodule("mlp.fc1")
    assert isinstance(fc1, nn.Linear)
    assert fc1.out_features == spec.mlp_hidden
    activation = block.get_submodule("mlp.act")
    assert isinstance(activation, nn.GELU)
    assert activation.approximate == "none"
    norm = block.get_submodule("norm1")
    assert isinstance(norm, nn.LayerNorm)
    assert norm.eps == 1e-6
    patches = (spec.image_size // 14) ** 2
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["pos_embed"] == (1, patches, spec.embed_dim)
    dino = spec.timm_model_id == DINO
    assert ("blocks.0.ls1.gamma" in shapes) == dino == ("reg_token" in shapes) == ("cls_token" in shapes)


@torch.inference_mode()
def features(spec: Spec, model: nn.Module, dtype: torch.dtype) -> npt.NDArray[Any]:
    shape = (1, 3, spec.image_size, spec.image_size)
    pixels = torch.from_numpy(seeded_tensor(f"{spec.tower}/pixel_values", shape, 2.0)).to(dtype)
    tower: Any = model.to(dtype)
    (out,) = tower.get_intermediate_layers(pixels, n={spec.depth - 2})
    assert out.shape == (1, (spec.image_size // 14) ** 2, spec.embed_dim), out.shape
    kept: npt.NDArray[Any] = out[0, :: spec.row_step, :: spec.column_step].contiguous().numpy()
    return kept


def main() -> None:
    torch.set_num_threads(1)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for spec in SPECS:
        model = build(spec)
        arrays[f"{spec.tower}/spec"] = np.array(json.dumps(asdict(spec)))
        single = arrays[f"{spec.tower}/float32"] = features(spec, model, torch.float32)
        double = arrays[f"{spec.tower}/float64"] = features(spec, model, torch.float64)
        error = np.abs(single - double).max()
        print(f"{spec.tower:12} {single.shape} |max| {np.abs(double).max():.3f} float32 off by {error:.2e}")  # noqa: T201
    write_npz(FOLDER / "timm_towers.npz", arrays)


if __name__ == "__main__":
    main()
