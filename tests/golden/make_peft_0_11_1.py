"""Merge small adapters with peft 0.11.1 itself, and keep what went in and what came out.

Ran with Python 3.11, torch 2.13.0 (CPU), peft 0.11.1, transformers 4.40.1, accelerate 0.34.2, numpy 1.26.4, in an
environment of its own:

    python -m tests.golden.make_peft_0_11_1

What peft 0.11.1 computes when `merge_and_unload()` folds one adapter into a base of dtype T (read in its source,
and reproduced bit for bit from the rules below). `round` is rounding to T; a matmul sums wider and rounds once.

- Loading: A, B and the DoRA magnitudes are created in T, so an adapter file in another dtype is rounded to T first.
  A file that carries `<path>.base_layer.weight` (lm_head, embed_tokens) replaces the base weight with its copy.
- scale: a Python float, alpha / r, or alpha / sqrt(r) for rsLoRA. It is never rounded to T: a tensor in bfloat16
  times a float is taken in float32 and rounded once.
- Linear: P = round(B @ A); D = round(P * scale); W' = round(W + D).
- fan_in_fan_out (Conv1D): the same with D transposed to the layout of W. On nn.Linear the flag is turned off.
- Conv2d: the same with P = B[:, :, 0, 0] @ A seen as (r, in * kh * kw), shaped back to W.
- Embedding (`lora_embedding_A` (r, vocabulary), `lora_embedding_B` (width, r)): D is the transpose of
  round(round(B @ A) * scale).
- DoRA, Linear: S = round(W + D); n = round(2-norm of each output row of S, summed wider); f = round(m / n);
  W' = round(f * S), with f along the outputs.
- DoRA, Conv2d: the same, the norm taken over all but the output dimension; m is stored as (1, out, 1, 1).
- Several adapters: one after the other, each on the rounded result of the one before.
- fp16 on a CPU: A and B go to float32, P and D stay float32, D is rounded to fp16 once.
- rank_pattern / alpha_pattern: one search serves both. The first key, rank_pattern's before alpha_pattern's, that
  matches `.*\\.<key>$` on the module path is looked up in both; failing that, the path itself. So where two
  different keys match one module, the later one is ignored (`pattern_shadowed`). Newer peft searches them apart.
- modules_to_save and bias="all": the file's tensors replace the base's, under the path without `base_model.model.`;
  the bias of an adapted layer is called `<path>.base_layer.bias`. (bias="lora_only" looks for `<path>.bias`, finds
  none, and saves no bias at all.)

Every A and B is a small integer over a power of two, so that B @ A has no rounding in any order of summation and
the results do not hang on the machine's matmul.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .storage import write_npz

FOLDER: Final = Path(__file__).parent
COPIED_HEAD: Final = "base_model.model.language_model.lm_head.base_layer.weight"


class Toy(nn.Module):
    """Layers under OpenVLA's names, and a Conv1D for fan_in_fan_out."""

    def __init__(self) -> None:
        super().__init__()

        def group(**children: nn.Module) -> nn.Module:
            return nn.ModuleDict(children)

        block = group(attn=group(qkv=nn.Linear(16, 48), proj=nn.Linear(16, 16)))
        patch = group(proj=nn.Conv2d(3, 8, 14, 14), pointwise=nn.Conv2d(8, 16, 1))
        self.vision_backbone = group(featurizer=group(patch_embed=patch, blocks=nn.ModuleList([block])))
        self.projector = group(fc1=nn.Linear(16, 32))
        layer = group(
            self_attn=group(q_proj=nn.Linear(32, 48, bias=False)), mlp=group(down_proj=nn.Linear(48, 32, bias=False))
        )
        body = group(embed_tokens=nn.Embedding(40, 32), layers=nn.ModuleList([layer]), c_attn=Conv1D(48, 32))
        self.language_model = group(model=body, lm_head=nn.Linear(32, 40, bias=False))

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule("language_model.model.embed_tokens")

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule("language_model.lm_head")


@dataclass(frozen=True)
class Kind:
    """One adapter's settings, or several adapters' to be merged in order."""

    name: str
    settings: list[dict[str, Any]]
    adapter_float32: bool = False
    edit_head: bool = False


LINEARS: Final = ["q_proj", "down_proj", "fc1"]
OPENVLA: Final = ["q_proj", "down_proj", "lm_head", "qkv", "proj", "fc1"]
HALF: Final = {"r": 32, "lora_alpha": 16}

KINDS: Final = [
    Kind("lora", [{**HALF, "target_modules": OPENVLA}]),
    Kind("lora_float32_adapter", [{**HALF, "target_modules": LINEARS}], adapter_float32=True),
    Kind("rslora", [{**HALF, "use_rslora": True, "target_modules": LINEARS}]),
    Kind("third", [{"r": 12, "lora_alpha": 4, "target_modules": LINEARS}]),
    Kind("dora", [{**HALF, "use_dora": True, "target_modules": LINEARS}]),
    Kind("dora_conv2d", [{"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": ["patch_embed.proj"]}]),
    Kind("conv2d", [{"r": 8, "lora_alpha": 3, "target_modules": ["patch_embed.proj", "pointwise"]}]),
    Kind(
        "patterns",
        [
            {
                "r": 8,
                "lora_alpha": 12,
                "rank_pattern": {"q_proj": 16, "projector.fc1": 4},
                "alpha_pattern": {"q_proj": 24, r"layers\.\d+\.mlp\.down_proj": 5},
                "target_modules": LINEARS,
            }
        ],
    ),
    Kind(
        "pattern_shadowed",
        [
            {
                "r": 8,
                "lora_alpha": 12,
                "rank_pattern": {"q_proj": 16},
                "alpha_pattern": {"self_attn.q_proj": 64},
                "target_modules": ["q_proj"],
            }
        ],
    ),
    Kind("lm_head", [{**HALF, "target_modules": ["lm_head"]}], edit_head=True),
    Kind("embedding", [{"r": 8, "lora_alpha": 3, "target_modules": ["embed_tokens"]}]),
    Kind("fan_in_fan_out", [{**HALF, "fan_in_fan_out": True, "target_modules": ["c_attn"]}]),
    Kind("fan_in_fan_out_dora", [{**HALF, "fan_in_fan_out": True, "use_dora": True, "target_modules": ["c_attn"]}]),
    Kind("bias_all", [{**HALF, "bias": "all", "target_modules": ["fc1"]}]),
    Kind("modules_to_save", [{**HALF, "target_modules": ["q_proj"], "modules_to_save": ["fc1"]}]),
    Kind(
        "two_adapters",
        [
            {**HALF, "target_modules": LINEARS},
            {"r": 8, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "qkv"]},
        ],
    ),
]


def base_state(generator: torch.Generator) -> dict[str, Tensor]:
    return {
        key: (torch.randn(value.shape, generator=generator) * 0.05).bfloat16()
        for key, value in Toy().state_dict().items()
    }


def base_model(state: dict[str, Tensor], dtype: torch.dtype) -> Toy:
    model = Toy().to(dtype)
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()})
    return model


def fill_(model: nn.Module, generator: torch.Generator) -> None:
    """Give the adapter values: A and B on a coarse grid, magnitudes near the norms they start as."""
    for name, parameter in model.named_parameters():
        last = name.split(".")
        grid = torch.randint(-31, 32, parameter.shape, generator=generator).float()
        if "lora_A" in last or "lora_embedding_A" in last:
            parameter.data = (grid / 64).to(parameter.dtype)
        elif "lora_B" in last or "lora_embedding_B" in last:
            parameter.data = (grid / 512).to(parameter.dtype)
        elif "lora_magnitude_vector" in last:
            parameter.data = (parameter.data.float() * (1 + grid / 128)).to(parameter.dtype)
        elif parameter.requires_grad:  # a bias, or a module to save
            parameter.data = (parameter.data.float() + grid / 256).to(parameter.dtype)


def save_adapter(base: Toy, settings: dict[str, Any], folder: Path, generator: torch.Generator, kind: Kind) -> None:
    model = get_peft_model(base, LoraConfig(**settings))
    fill_(model, generator)
    model.save_pretrained(str(folder))
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    if kind.edit_head:
        tensors[COPIED_HEAD] = (tensors[COPIED_HEAD].float() * 1.25).bfloat16()
    if kind.adapter_float32:
        # Less than half a bfloat16 step off the grid: back on it once rounded, visibly off it if not.
        tensors = {key: value.float() * (1 + 0.9 * 2.0**-9) for key, value in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def merge(base: nn.Module, folder: Path) -> nn.Module:
    merged: nn.Module = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    return merged


def stored(value: Tensor) -> npt.NDArray[Any]:
    value = value.detach().contiguous()
    array: npt.NDArray[Any]
    array = value.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16 else value.numpy()
    return array


def run(kind: Kind, base: dict[str, Tensor], generator: torch.Generator, scratch: Path) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    model: nn.Module = base_model(base, torch.bfloat16)
    wide: nn.Module = base_model(base, torch.float32)
    for number, settings in enumerate(kind.settings):
        folder = scratch / f"{kind.name}_{number}"
        save_adapter(base_model(base, torch.bfloat16), settings, folder, generator, kind)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])
        arrays[f"{kind.name}/config_{number}"] = np.array(json.dumps(config, sort_keys=True))
        for key, value in load_file(folder / "adapter_model.safetensors").items():
            arrays[f"{kind.name}/adapter_{number}/{key}"] = stored(value)
        model = merge(model, folder)
        wide = merge(wide, folder)
    after = model.state_dict()
    assert after.keys() == base.keys(), f"{kind.name}: merging changed the keys"
    changed = [key for key, value in after.items() if not torch.equal(value, base[key])]
    for key, value in wide.state_dict().items():
        if key in changed:
            arrays[f"{kind.name}/merged/{key}"] = stored(after[key])
            arrays[f"{kind.name}/merged_float32/{key}"] = stored(value)
        else:
            assert torch.equal(value, base[key].float()), f"{kind.name}: {key} changed in float32 only"
    print(f"{kind.name:22} changed {', '.join(changed)}")  # noqa: T201
    return arrays


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(11)
    base = base_state(generator)
    arrays = {f"base/{key}": stored(value) for key, value in base.items()}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            arrays |= run(kind, base, generator, Path(scratch))
    write_npz(FOLDER / "peft_0_11_1.npz", arrays)


if __name__ == "__main__":
    main()
