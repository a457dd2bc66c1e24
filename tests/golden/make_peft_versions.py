"""Train-like adapters saved and merged by one version of peft after another, into bases of every float type.

Run once in each environment, torch 2.13.0 (CPU) in all of them, then once to join what they left:

    python -m tests.golden.make_peft_versions SCRATCH           # peft 0.10.0 to 0.21.2
    python -m tests.golden.make_peft_versions SCRATCH --join

peft 0.10.0 to 0.13.2 ran beside transformers 4.40.1, 0.14.0 to 0.18.0 beside 4.57.1, the rest beside 5.23.0.
Most versions leave the same bits, so `peft_versions.npz` keeps each array once, under its hash, and
`peft_versions.json` says which version, adapter and base gave which.

A and B are small integers over powers of two, as in `make_peft_0_11_1.py`: their product has no rounding. The base
holds values that float16 can't: subnormal ones. What versions read and wrote (their sources):

- `<path>.base_layer.weight`, saved beside an adapter that targets lm_head or embed_tokens, replaces the base's weight
  when the adapter is loaded, rounded to the base's type, in every version.
- up to 0.11.1 adapters take the base's type when they are loaded; from 0.12.0 they are float32 on a 16-bit base.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.golden.storage import write_npz

FOLDER: Final = Path(__file__).parent
BASES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Toy(nn.Module):
    """A linear with and one without bias, a convolution, an embedding and a head, under OpenVLA's names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 8, 2, 2)})
        self.fc1 = nn.Linear(16, 12)
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(16, 24, bias=False)})
        self.embed_tokens = nn.Embedding(20, 16)
        self.lm_head = nn.Linear(16, 20, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


@dataclass(frozen=True)
class Kind:
    """`trained` is the type of the base while the adapter was trained on it."""

    settings: dict[str, Any]
    trained: torch.dtype = torch.bfloat16
    since: tuple[int, int] = (0, 10)
    filled: tuple[str, ...] = ("lora_",)
    saved_with: dict[str, Any] = field(default_factory=dict)


ALL: Final = ["q_proj", "fc1", "proj", "lm_head"]
RANK: Final = {"r": 4, "lora_alpha": 6}
KINDS: Final = {
    "lora": Kind({**RANK, "target_modules": ALL}),
    "trained_fp16": Kind({**RANK, "target_modules": ALL}, torch.float16),
    "trained_fp32": Kind({**RANK, "target_modules": ALL}, torch.float32),
    "embedding": Kind({**RANK, "target_modules": ["embed_tokens", "q_proj"]}, torch.float16),
    "rslora": Kind({**RANK, "use_rslora": True, "target_modules": ALL[:3]}),
    "dora": Kind({**RANK, "use_dora": True, "target_modules": ["q_proj", "fc1"]}),
    "dora_conv": Kind({**RANK, "use_dora": True, "target_modules": ["proj"]}, since=(0, 11)),
    "patterns": Kind(
        {
            **RANK,
            "rank_pattern": {"q_proj": 2, "patch_embed.proj": 8},
            "alpha_pattern": {"self_attn.q_proj": 5, "fc1": 3},
            "target_modules": ALL[:3],
        }
    ),
    "modules_to_save": Kind(
        {**RANK, "target_modules": ["q_proj"], "modules_to_save": ["fc1", "lm_head"]},
        torch.float16,
        filled=("lora_", "modules_to_save"),
    ),
    "modules_to_save_twice": Kind(
        {**RANK, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        filled=("lora_", "modules_to_save"),
        saved_with={"save_embedding_layers": True},
    ),
    "bias_all": Kind({**RANK, "bias": "all", "target_modules": ["fc1"]}, filled=("lora_", "bias")),
    "bias_lora_only": Kind({**RANK, "bias": "lora_only", "target_modules": ["fc1"]}, filled=("lora_", "bias")),
    "excluded": Kind({**RANK, "target_modules": ALL[:3], "exclude_modules": ["fc1"]}, since=(0, 14)),
    "lora_bias": Kind({**RANK, "lora_bias": True, "target_modules": ["fc1"]}, since=(0, 14)),
    "tokens": Kind(
        {**RANK, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 3]}},
        since=(0, 15),
        filled=("lora_", "token_adapter"),
    ),
}


def base_state() -> dict[str, Tensor]:
    """bfloat16; a tenth of every tensor is scaled into float16's subnormal numbers, which round."""
    generator = torch.Generator().manual_seed(14)
    state = {}
    for key, value in Toy().state_dict().items():
        values = torch.randn(value.shape, generator=generator) * 0.05
        small = torch.rand(value.shape, generator=generator) < 0.1
        state[key] = torch.where(small, values * 2.0**-12, values).bfloat16()
    return state


def base_model(dtype: torch.dtype) -> Toy:
    model = Toy().to(dtype)
    model.load_state_dict({key: value.to(dtype) for key, value in base_state().items()})
    return model


def fill_(model: nn.Module, parts: tuple[str, ...]) -> None:
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad or not any(part in name for part in parts):
            continue
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
        grid = torch.randint(-31, 32, parameter.shape, generator=torch.Generator().manual_seed(seed)).float()
        if "magnitude" in name:
            parameter.data = (parameter.data.float() * (1 + grid / 128)).to(parameter.dtype)
        elif "lora_A" in name or "lora_embedding_A" in name:
            parameter.data = (grid / 64).to(parameter.dtype)
        elif "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = (grid / 512).to(parameter.dtype)
        else:
            parameter.data = (parameter.data.float() + grid / 256).to(parameter.dtype)


def stored(value: Tensor) -> npt.NDArray[Any]:
    value = value.detach().contiguous()
    array: npt.NDArray[Any]
    array = value.view(torch.int16).numpy().view(np.uint16) if value.dtype == torch.bfloat16 else value.numpy()
    return array


class Store:
    """Arrays by hash, and the table that names them."""

    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {}

    def keep(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        return {key: self._add(stored(value)) for key, value in sorted(tensors.items())}

    def _add(self, array: npt.NDArray[Any]) -> str:
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]
        self.arrays[digest] = array
        return digest


def run(kind: Kind, store: Store, scratch: Path) -> dict[str, Any]:
    model = get_peft_model(base_model(kind.trained), LoraConfig(**kind.settings))
    fill_(model, kind.filled)
    model.save_pretrained(str(scratch), **kind.saved_with)
    config = json.loads((scratch / "adapter_config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in sorted(config.items()) if value or key == "exclude_modules"}
    kept.pop("peft_version", None)
    merged = {}
    for name, dtype in BASES.items():
        base = base_model(dtype)
        before = {key: value.clone() for key, value in base.state_dict().items()}
        after = PeftModel.from_pretrained(base, str(scratch)).merge_and_unload().state_dict()
        assert after.keys() == before.keys()
        changed = {key: value for key, value in after.items() if not torch.equal(value, before[key])}
        merged[name] = store.keep(changed)
    for listed in ("target_modules", "modules_to_save", "exclude_modules"):
        if kept.get(listed):
            kept[listed] = sorted(kept[listed])
    return {"config": kept, "adapter": store.keep(load_file(scratch / "adapter_model.safetensors")), "merged": merged}


def record(scratch: Path) -> None:
    store, table = Store(), {}
    version = tuple(int(part) for part in peft.__version__.split(".")[:2])
    base = store.keep(base_state())
    for name, kind in KINDS.items():
        if version >= kind.since:
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                table[name] = run(kind, store, Path(folder))
    write_npz(scratch / f"{peft.__version__}.npz", store.arrays)
    text = json.dumps({"base": base, "kinds": table})
    (scratch / f"{peft.__version__}.json").write_text(text, encoding="utf-8")


def join(scratch: Path) -> None:
    """Versions that saved and merged alike stand in one entry."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    base: dict[str, str] = {}
    for path in sorted(scratch.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        base = one["base"]
        for kind, outcome in one["kinds"].items():
            entry = {"kind": kind, **outcome}
            runs.setdefault(json.dumps(entry), {**entry, "versions": []})["versions"].append(path.stem)
        with np.load(path.with_suffix(".npz")) as stored_arrays:
            arrays |= {name: stored_arrays[name] for name in stored_arrays.files}
    write_npz(FOLDER / "peft_versions.npz", dict(sorted(arrays.items())))
    text = json.dumps({"base": base, "runs": list(runs.values())}, sort_keys=True, separators=(",", ":"))
    (FOLDER / "peft_versions.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--join", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.join:
        join(given.scratch)
    else:
        record(given.scratch)


if __name__ == "__main__":
    main()
