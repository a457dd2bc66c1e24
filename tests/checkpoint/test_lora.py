"""Adapter merges: bit-exact with peft 0.11.1 in bf16, equal to today's peft on a float32 base, laws beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from edge_vla.checkpoint import Adapter, Arithmetic, SafetensorsDirectory, merge_adapters
from edge_vla.errors import CheckpointError, EdgeVLAWarning
from tests.checkpoint.tensors import Tensors, write_adapter
from tests.golden.peft_merges import Merge, merges

# Their result rests on a rounding of the float32 factors or on the order of a norm's sum.
INEXACT_FLOAT32 = {"dora": 1e-6, "dora_conv2d": 1e-6, "fan_in_fan_out_dora": 1e-6, "lora_float32_adapter": 1e-6}


def bits(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int32)).to(torch.int16).view(torch.bfloat16)


def carries_another_base(merge: Merge) -> bool:
    """This golden's copy of lm_head is scaled on purpose; peft lets it replace the base, we refuse it."""
    return merge.name == "lm_head"


@pytest.mark.filterwarnings("ignore:.*hides the alpha pattern")
@pytest.mark.parametrize("merge", merges(), ids=lambda merge: merge.name)
def test_upstream_is_bit_exact_with_peft_0_11_1(merge: Merge, tmp_path: Path) -> None:
    _, folders = merge.write(tmp_path)
    base = SafetensorsDirectory(tmp_path)
    if carries_another_base(merge):
        with pytest.raises(CheckpointError, match="another base"):
            merge_adapters(base, [Adapter(folder) for folder in folders], "upstream")
        return
    merged = merge_adapters(base, [Adapter(folder) for folder in folders], "upstream")
    assert merge.merged, "the golden changes something"
    for name, expected in merge.merged.items():
        assert torch.equal(merged.load(name), bits(expected)), name
    for name in set(base.names()) - set(merge.merged):
        assert torch.equal(merged.load(name), base.load(name)), name


SAME_BASE = [merge for merge in merges() if not carries_another_base(merge)]


@pytest.mark.filterwarnings("ignore:.*hides the alpha pattern")
@pytest.mark.parametrize("merge", SAME_BASE, ids=lambda merge: merge.name)
def test_fp32_equals_peft_on_a_float32_base(merge: Merge, tmp_path: Path) -> None:
    _, folders = merge.write(tmp_path)
    base = Tensors({name: bits(values).float() for name, values in merge.base.items()})
    merged = merge_adapters(base, [Adapter(folder) for folder in folders], "fp32")
    for name, expected in merge.merged_float32.items():
        difference = (merged.load(name) - torch.from_numpy(expected)).abs().max()
        assert difference <= INEXACT_FLOAT32.get(merge.name, 0.0), (name, difference)


class Small(nn.Module):
    """Layers of every kind that OpenVLA's adapters touch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.q_proj = nn.Linear(24, 16, bias=False)
        self.down_proj = nn.Linear(16, 24)
        self.lm_head = nn.Linear(24, 32, bias=False)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 4},
    "rslora": {"r": 8, "lora_alpha": 5, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3, "proj": 5}},
    "bias": {"r": 4, "lora_alpha": 8, "bias": "all"},
    "modules_to_save": {"r": 4, "lora_alpha": 8, "modules_to_save": ["down_proj"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_equals_todays_peft(kind: str, tmp_path: Path) -> None:
    """Difference zero with `merge_and_unload` on a float32 base, for every kind."""
    torch.manual_seed(0)
    model = Small()
    base = Tensors({name: value.clone() for name, value in model.state_dict().items()})
    options = {"target_modules": ["proj", "q_proj", "down_proj", "lm_head"], **KINDS[kind]}
    wrapped = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name or (kind == "bias" and name.endswith("bias")):
                parameter.normal_()
    wrapped.save_pretrained(str(tmp_path))
    expected = wrapped.merge_and_unload().state_dict()
    merged = merge_adapters(base, [Adapter(tmp_path)], "fp32")
    changed = [name for name in base.names() if not torch.equal(merged.load(name), base.load(name))]
    assert changed, "the adapter changes something"
    for name in base.names():
        difference = (merged.load(name) - expected[name]).abs().max()
        assert difference <= 0.0, (name, difference)


def pair(n: int, k: int, rank: int = 2) -> dict[str, Tensor]:
    return {
        "base_model.model.q_proj.lora_A.weight": torch.randn(rank, k),
        "base_model.model.q_proj.lora_B.weight": torch.randn(n, rank),
    }


def test_zero_b_changes_nothing(tmp_path: Path) -> None:
    tensors = pair(6, 4)
    tensors["base_model.model.q_proj.lora_B.weight"].zero_()
    base = Tensors({"q_proj.weight": torch.randn(6, 4).bfloat16()})
    arithmetics: tuple[Arithmetic, ...] = ("fp32", "upstream")
    for arithmetic in arithmetics:
        with pytest.warns(EdgeVLAWarning, match="changes nothing, because every lora_B is zero"):
            merged = merge_adapters(base, [write_adapter(tmp_path, tensors)], arithmetic)
        assert torch.equal(merged.load("q_proj.weight"), base.load("q_proj.weight"))


def test_adapters_merge_in_order(tmp_path: Path) -> None:
    base = Tensors({"q_proj.weight": torch.randn(6, 4).bfloat16()})
    first, second = write_adapter(tmp_path / "a", pair(6, 4)), write_adapter(tmp_path / "b", pair(6, 4, rank=1))
    once = Tensors({"q_proj.weight": merge_adapters(base, [first]).load("q_proj.weight")})
    assert torch.equal(
        merge_adapters(base, [first, second]).load("q_proj.weight"),
        merge_adapters(once, [second]).load("q_proj.weight"),
    )


@pytest.mark.parametrize("option", ["lora_bias", "layer_replication", "use_qalora", "target_parameters"])
def test_what_is_not_implemented_is_refused_by_name(option: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=option):
        write_adapter(tmp_path, pair(6, 4), **{option: True})
