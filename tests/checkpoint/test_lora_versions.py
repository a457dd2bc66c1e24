"""Every version of peft from 0.10 to 0.21, on every type of base: merges equal to its own, or refused with why."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edge_vla.checkpoint import Adapter, Arithmetic, merge_adapters
from edge_vla.checkpoint.base_copy import difference
from edge_vla.checkpoint.lora_config import HARMLESS, REFUSED, AdapterConfig
from edge_vla.checkpoint.quantised import open_directory
from edge_vla.errors import CheckpointError, EdgeVLAWarning
from tests.checkpoint.tensors import Tensors, write_adapter
from tests.golden.peft_versions import BASES, Run, base_state, runs

IMPLEMENTED = [run for run in runs() if run.kind not in ("lora_bias", "tokens")]
HEAD = "base_model.model.lm_head.base_layer.weight"


def arithmetic_of(run: Run) -> Arithmetic:
    return "upstream" if run.first < (0, 12) else "fp32"


def rounded_twice(run: Run, name: str) -> bool:
    """Where these versions round the update to the base's type before they add it, and again after."""
    convolution, embedding = "patch_embed" in name, "embed_tokens" in name
    return "dora" not in run.kind and (
        (convolution and (0, 16) <= run.first < (0, 20)) or (embedding and run.first >= (0, 16))
    )


@pytest.mark.filterwarnings("ignore::edge_vla.errors.EdgeVLAWarning")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("run", IMPLEMENTED, ids=str)
def test_equals_the_peft_that_saved_it(run: Run, base: str, tmp_path: Path) -> None:
    merged = merge_adapters(Tensors(base_state(base)), [Adapter(run.write(tmp_path))], arithmetic_of(run))
    expected = run.merged(base)
    assert any(not torch.equal(expected[name], value) for name, value in base_state(base).items())
    for name, theirs in expected.items():
        ours = merged.load(name)
        if base != "fp32" and rounded_twice(run, name):
            apart = (ours.float() - theirs.float()).abs().max()
            assert apart <= torch.finfo(theirs.dtype).eps * theirs.float().abs().max(), name
        else:
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(("kind", "why"), [("lora_bias", "uses lora_bias"), ("tokens", "uses trainable_token_indices")])
def test_the_rest_is_refused_by_name(kind: str, why: str, tmp_path: Path) -> None:
    for run in (run for run in runs() if run.kind == kind):
        with pytest.raises(CheckpointError, match=why):
            Adapter(run.write(tmp_path / str(run)))


def test_a_copy_rounded_in_training_is_the_bases(tmp_path: Path) -> None:
    """The golden's copy of lm_head is not the base's bit for bit, and peft merges into the copy."""
    (run,) = (run for run in IMPLEMENTED if run.kind == "trained_fp16" and run.versions[-1] == "0.21.2")
    adapter = Adapter(run.write(tmp_path))
    copy, head = adapter.load(HEAD), base_state("bf16")["lm_head.weight"]
    assert copy.dtype == torch.float16
    assert not torch.equal(copy.float(), head.float())
    adapter.check(Tensors(base_state("bf16")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_bases_copy_is_refused_with_how_far_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    head = torch.randn(6, 4).bfloat16()
    other = head.float()
    other[1, 2] += 0.5
    tensors = {HEAD: other.to(dtype), **head_factors()}
    adapter = write_adapter(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"differs.*: 1 of 24 values .* furthest by 0\.5 .*another base"):
        adapter.check(Tensors({"lm_head.weight": head}))


def test_a_copy_that_overflowed_is_refused_as_that(tmp_path: Path) -> None:
    head = torch.full((6, 4), 1e5).bfloat16()
    adapter = write_adapter(tmp_path, {HEAD: head.half(), **head_factors()})
    with pytest.raises(CheckpointError, match=r"24 values of the base's lm_head\.weight overflowed"):
        adapter.check(Tensors({"lm_head.weight": head}))


FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@given(
    st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20),
    *[st.sampled_from(FLOATS) for _ in range(3)],
)
def test_rounding_is_never_a_difference(
    values: list[float], stored: torch.dtype, trained: torch.dtype, saved: torch.dtype
) -> None:
    """A base stored in one type, trained in another and saved in a third; subnormals and zeros of both signs too."""
    base = torch.tensor(values).to(stored)
    assert difference(base.to(trained).to(saved), base) is None


@given(st.integers(0, 2**32), st.sampled_from(FLOATS), st.sampled_from(FLOATS))
def test_another_base_is_always_one(seed: int, one: torch.dtype, two: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, other = (torch.randn(8, 8, generator=generator) * 0.02 for _ in range(2))
    assert difference(other.to(one), base.to(two)) is not None


def head_factors() -> dict[str, Tensor]:
    return {
        "base_model.model.lm_head.lora_A.weight": torch.randn(2, 4),
        "base_model.model.lm_head.lora_B.weight": torch.randn(6, 2),
    }


def test_fan_in_fan_out_on_a_square_linear_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    """peft turns the option off on nn.Linear; transposing a square one would go unnoticed."""
    model = nn.ModuleDict({"q_proj": nn.Linear(6, 6, bias=False)})
    base = Tensors({name: value.clone() for name, value in model.state_dict().items()})
    factors = {
        "base_model.model.q_proj.lora_A.weight": torch.randn(2, 6),
        "base_model.model.q_proj.lora_B.weight": torch.randn(6, 2),
    }
    adapter = write_adapter(tmp_path, factors, fan_in_fan_out=True, target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload().state_dict()
    assert torch.equal(merge_adapters(base, [adapter]).load("q_proj.weight"), expected["q_proj.weight"])


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module."])
def test_a_wrapped_models_keys_are_named_as_that(wrapper: str, tmp_path: Path) -> None:
    tensors = {key.replace("lm_head", f"{wrapper}lm_head"): value for key, value in head_factors().items()}
    with pytest.raises(CheckpointError, match="saved from a wrapped model"):
        write_adapter(tmp_path, tensors).check(Tensors({"lm_head.weight": torch.randn(6, 4)}))


def test_keys_of_a_training_state_are_named_as_that(tmp_path: Path) -> None:
    tensors = {key.replace(".weight", ".default.weight"): value for key, value in head_factors().items()}
    with pytest.raises(CheckpointError, match="peft would not load it: save with save_pretrained"):
        write_adapter(tmp_path, tensors)


def test_a_pickled_adapter_is_refused_with_the_way(tmp_path: Path) -> None:
    write_adapter(tmp_path, head_factors())
    path = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "adapter_model.bin")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin, which is not read: there, run python -c"):
        Adapter(tmp_path)


def test_biases_that_peft_lost_are_said(tmp_path: Path) -> None:
    lost = next(run for run in IMPLEMENTED if run.kind == "bias_lora_only" and run.first < (0, 21))
    with pytest.warns(EdgeVLAWarning, match="trained biases .*peft before 0.21 lost them"):
        merge_adapters(Tensors(base_state("bf16")), [Adapter(lost.write(tmp_path))])


def test_hidden_alpha_patterns_are_said(tmp_path: Path) -> None:
    old, *_, new = (run for run in IMPLEMENTED if run.kind == "patterns")
    base = Tensors(base_state("bf16"))
    with pytest.warns(EdgeVLAWarning, match="up to 0.13, which saved it"):
        merge_adapters(base, [Adapter(old.write(tmp_path / "old"))])
    with pytest.warns(EdgeVLAWarning, match="as it was trained is --merge-arithmetic fp32"):
        merge_adapters(base, [Adapter(new.write(tmp_path / "new"))], "upstream")


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.q_proj"])
def test_modules_that_peft_would_leave_out_are_said(targets: object, tmp_path: Path) -> None:
    """Live: a file with factors of two modules under a config that names one."""
    names = ["layer.q_proj", "layer.k_proj"]
    model = nn.ModuleDict({"layer": nn.ModuleDict({"q_proj": nn.Linear(4, 6), "k_proj": nn.Linear(4, 6)})})
    base = Tensors({name: value.clone() for name, value in model.state_dict().items()})
    factors = {
        f"base_model.model.{name}.lora_{part}.weight": torch.randn(*size)
        for name in names
        for part, size in (("A", (2, 4)), ("B", (6, 2)))
    }
    adapter = write_adapter(tmp_path, factors, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload().state_dict()
    left_out = [name for name in names if torch.equal(merged[f"{name}.weight"], base.load(f"{name}.weight"))]
    assert left_out == ["layer.k_proj"]
    with pytest.warns(EdgeVLAWarning, match=r"merges 1 modules, first layer\.k_proj, .*peft would leave them out"):
        merge_adapters(base, [adapter])


def test_every_option_of_the_installed_peft_is_known() -> None:
    """A new option of peft may change the merge: read what it does, then name it."""
    known = {*HARMLESS, *REFUSED, *(field.name for field in fields(AdapterConfig))}
    assert {field.name for field in fields(LoraConfig)} <= known


def test_an_option_of_a_later_peft_is_said(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, head_factors(), use_later=True)
    with pytest.warns(EdgeVLAWarning, match="sets use_later, which peft up to 0.21 does not have"):
        merge_adapters(Tensors({"lm_head.weight": torch.randn(6, 4)}), [adapter])


class FourBit:
    """The 4-bit base and its adapters, on disk."""

    def __init__(self, folder: Path) -> None:
        tensors = load_file(Path(__file__).parents[1] / "golden/peft_4bit.safetensors")
        part = {
            name: {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            for name in ("base", "adapter", "copied", "merged")
        }
        (folder / "base").mkdir()
        save_file(part["base"], folder / "base/model.safetensors")
        quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        (folder / "base/config.json").write_text(json.dumps(quantised), encoding="utf-8")
        self.base, _ = open_directory(folder / "base")
        self.adapter = write_adapter(folder / "adapter", part["adapter"], r=4, lora_alpha=6)
        self.levels, self.merged = part["base"]["q_proj.weight.quant_map"], part["merged"]["q_proj.weight"]
        self.copied = part["copied"]


def test_a_4_bit_base_merges_to_what_peft_then_rounds(tmp_path: Path) -> None:
    """peft rounds its merge to NF4 again, we do not: rounded by the definition of NF4, ours is peft's."""
    four = FourBit(tmp_path)
    wide = Tensors({"q_proj.weight": four.base.load("q_proj.weight").float()})
    ours = merge_adapters(wide, [four.adapter]).load("q_proj.weight")
    largest = ours.abs().amax(dim=1, keepdim=True)  # a row is a block
    nearest = (ours / largest).unsqueeze(-1).sub(four.levels).abs().argmin(dim=-1)
    assert torch.equal(four.levels[nearest] * largest, four.merged.float())
    merged = merge_adapters(four.base, [four.adapter]).load("q_proj.weight")
    assert torch.equal(merged, ours.to(merged.dtype))


def test_a_4_bit_copy_of_the_base_is_refused_as_that(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="4-bit copy of the base, which peft loads into a 4-bit base only"):
        write_adapter(tmp_path / "copied", FourBit(tmp_path).copied, r=4, lora_alpha=6)


def test_the_installed_peft_merges_a_rounded_copy_so(tmp_path: Path) -> None:
    """Live, not recorded: trained on a float16 base with today's peft, merged into the bfloat16 one."""
    torch.manual_seed(3)
    head = (torch.randn(6, 4) * 1e-5).bfloat16()  # subnormal in float16
    wrapped = get_peft_model(LanguageModel(head.half()), LoraConfig(r=2, target_modules=["lm_head"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    wrapped.save_pretrained(str(tmp_path), save_embedding_layers=True)
    assert HEAD in load_file(tmp_path / "adapter_model.safetensors")
    expected = PeftModel.from_pretrained(LanguageModel(head), str(tmp_path)).merge_and_unload().state_dict()
    merged = merge_adapters(Tensors({"lm_head.weight": head}), [Adapter(tmp_path)])
    assert torch.equal(merged.load("lm_head.weight"), expected["lm_head.weight"])


class LanguageModel(nn.Module):
    def __init__(self, head: Tensor) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(2, 4)
        self.lm_head = nn.Linear(4, 6, bias=False, dtype=head.dtype)
        self.lm_head.weight.data = head.clone()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head
