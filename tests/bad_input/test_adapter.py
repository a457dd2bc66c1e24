"""An adapter that does not belong, or carries what is not implemented, is refused before anything is merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.lora_config import REFUSED, REFUSED_INITIALISATIONS
from edge_vla.errors import CheckpointError, EdgeVLAError, UsageError
from tests.bad_input.damage import (
    WEIGHTS,
    Fault,
    command,
    cut,
    edit_json,
    edit_tensors,
    flip,
    lora,
    names,
    nothing_left,
    put,
    refused,
    spoil,
    write_adapter,
)

CONFIG = "adapter_config.json"
QUERY = "language_model.model.layers.0.self_attn.q_proj"
HEAD = "language_model.lm_head"
PATCH = "vision_backbone.featurizer.patch_embed.proj"
A, B = f"base_model.model.{QUERY}.lora_A.weight", f"base_model.model.{QUERY}.lora_B.weight"
WIDTH, PATCH_WIDTH = 128, 64  # of the golden checkpoint; a test below holds it


def option(key: str, value: object) -> Any:
    return lambda d: edit_json(d / CONFIG, lambda raw: raw.__setitem__(key, value))


def replaced(content: dict[str, Tensor]) -> Any:
    """Damage that gives the adapter other tensors."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors.clear()
        tensors.update({f"base_model.model.{name}": tensor for name, tensor in content.items()})

    return lambda d: edit_tensors(d / WEIGHTS, change)


def added(content: dict[str, Tensor]) -> Any:
    return lambda d: edit_tensors(d / WEIGHTS, lambda tensors: tensors.update(content))


def set_to(name: str, tensor: Tensor) -> Any:
    return lambda d: edit_tensors(d / WEIGHTS, lambda tensors: tensors.__setitem__(name, tensor))


def number(name: str, value: float) -> Any:
    return lambda d: edit_tensors(d / WEIGHTS, lambda tensors: spoil(tensors, name, value))


def dora(magnitude: Tensor) -> Any:
    def damage(directory: Path) -> None:
        option("use_dora", True)(directory)
        added({f"base_model.model.{QUERY}.lora_magnitude_vector": magnitude})(directory)

    return damage


def kernel(*size: int) -> dict[str, Tensor]:
    """A convolution's factors for the patch embedding, with a kernel of `size`."""
    return {f"{PATCH}.lora_A.weight": torch.ones(4, 3, *size), f"{PATCH}.lora_B.weight": torch.ones(64, 4, 1, 1)}


WRONG_HEAD = {**lora(QUERY, WIDTH, WIDTH), f"{HEAD}.base_layer.weight": torch.ones(32064, WIDTH).bfloat16()}
FAULTS = [
    Fault("no config", lambda d: (d / CONFIG).unlink(), CheckpointError, (CONFIG, "missing")),
    Fault("config not JSON", lambda d: cut(d / CONFIG, -3), CheckpointError, (CONFIG, "JSON")),
    Fault("no weights", lambda d: (d / WEIGHTS).unlink(), CheckpointError, (WEIGHTS, "missing", "expected a peft")),
    Fault("truncated", lambda d: cut(d / WEIGHTS, -1), CheckpointError, (WEIGHTS, "truncated")),
    Fault("header flipped", lambda d: flip(d / WEIGHTS, 64), CheckpointError, (WEIGHTS, "download")),
    Fault("no tensors", replaced({}), CheckpointError, (WEIGHTS, "no adapter tensors", "expected")),
    Fault("not LoRA", option("peft_type", "IA3"), CheckpointError, ("IA3", "only LORA")),
    Fault("bad key", added({"lm_head.weight": torch.ones(2)}), CheckpointError, ("'lm_head.weight'", "base_model")),
    Fault("bad suffix", added({f"{A}.extra": torch.ones(2)}), CheckpointError, ("extra", "implemented")),
    Fault("named adapter", added({A.replace("A.w", "A.x.w"): torch.ones(2)}), CheckpointError, ("lora_A.x",)),
    Fault("a missing", lambda d: edit_tensors(d / WEIGHTS, lambda t: t.pop(A)), CheckpointError, (QUERY, "both")),
    Fault("ranks differ", set_to(B, torch.ones(WIDTH, 3)), CheckpointError, ("(4, 128)", "(128, 3)", "expected")),
    Fault("rank 0", replaced(lora(QUERY, WIDTH, WIDTH, 0)), CheckpointError, ("(0, 128)", "expected")),
    Fault("a a vector", set_to(A, torch.ones(4)), CheckpointError, (QUERY, "(4,)", "expected")),
    Fault("b a vector", set_to(B, torch.ones(WIDTH)), CheckpointError, (QUERY, "(128,)", "expected")),
    Fault("a a number", set_to(A, torch.ones(())), CheckpointError, (QUERY, "()", "expected")),
    Fault("NaN", number(A, float("nan")), CheckpointError, (A, "1 non-finite", "damaged")),
    Fault("Inf", number(B, float("inf")), CheckpointError, (B, "1 non-finite", "damaged")),
    Fault("alpha a text", option("lora_alpha", "16"), CheckpointError, ("lora_alpha", "'16'", "expected float")),
    Fault("alpha NaN", option("lora_alpha", float("nan")), CheckpointError, ("lora_alpha", "nan", "number")),
    Fault("alpha huge", option("lora_alpha", 1e39), CheckpointError, (QUERY, "merged", "non-finite")),
    Fault("pattern a list", option("alpha_pattern", [1]), CheckpointError, ("alpha_pattern",)),
    Fault("pattern no regex", option("rank_pattern", {"(": 1}), CheckpointError, ("rank_pattern",)),
    Fault("target unknown", replaced(lora("model.q", 8, 8)), CheckpointError, ("model.q.weight", "another base")),
    Fault("shape of another", replaced(lora(QUERY, 4096, 4096)), CheckpointError, ("4096 x 4096", "another base")),
    Fault("outputs of another", replaced(lora(QUERY, 64, WIDTH)), CheckpointError, ("64 x 128", "another base")),
    Fault("kernel of another", replaced(kernel(7, 7)), CheckpointError, ("14, 14", "another base")),
    Fault("linear on kernel", replaced(lora(PATCH, PATCH_WIDTH, 3)), CheckpointError, ("14, 14", "another base")),
    Fault("saved module", added({f"base_model.model.{QUERY}.weight": torch.ones(2, 2)}), CheckpointError, ("(2, 2)",)),
    Fault("base copy differs", replaced(WRONG_HEAD), CheckpointError, ("lm_head", "differs", "another base")),
    Fault("magnitude, no dora", set_to(f"base_model.model.{QUERY}.lora_magnitude_vector", torch.ones(WIDTH)),
          CheckpointError, ("use_dora is None", "magnitude")),
    Fault("dora, no magnitude", option("use_dora", True), CheckpointError, ("use_dora is True",)),
    Fault("magnitude of one", dora(torch.ones(1)), CheckpointError, ("128 outputs", "(1,)")),
    Fault("magnitude long", dora(torch.ones(256)), CheckpointError, ("128 outputs", "(256,)")),
    *(Fault(name, option(name, {"a": 1}), CheckpointError, (name, "merge it with peft")) for name in REFUSED),
    *(
        Fault(f"init {name}", option("init_lora_weights", f"{name}_niter_4"), CheckpointError, (name, "merge it"))
        for name in REFUSED_INITIALISATIONS
    ),
]  # fmt: skip


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", lora(QUERY, WIDTH, WIDTH))


def test_the_sound_adapter_merges(golden_checkpoint: Path, adapter: Path) -> None:
    """Otherwise every test below would pass for a wrong reason."""
    plain, merged = open_checkpoint(golden_checkpoint), open_checkpoint(golden_checkpoint, [adapter])
    factors = load_file(adapter / WEIGHTS)
    weight = plain.tensors.load(f"{QUERY}.weight")
    expected = (weight.float() + factors[B] @ factors[A] * 2).bfloat16()
    assert torch.equal(merged.tensors.load(f"{QUERY}.weight"), expected)
    assert not torch.equal(weight, expected)
    assert plain.tensors.shape(f"{PATCH}.weight") == (PATCH_WIDTH, 3, 14, 14)


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_a_wrong_adapter_is_refused(
    fault: Fault, golden_checkpoint: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault.damage(adapter)
    with pytest.raises(EdgeVLAError) as caught:
        open_checkpoint(golden_checkpoint, [adapter]).tensors.load(f"{QUERY}.weight")
    refused(caught, fault.error, fault.words)
    out = tmp_path / "out"
    with nothing_left(out):
        ended = command(capsys, "export", golden_checkpoint, "--adapter", adapter, "--out", out)
    # What was read is said before the weights are, so a number that is not finite comes after it.
    late = fault.name in ("NaN", "Inf", "alpha huge")
    ended.refused_with(fault.error.exit_code, fault.words, lines=None if late else 1)


def test_the_second_adapter_is_checked_on_top_of_the_first(
    golden_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    """A copy of the head as the first adapter left it belongs; a copy of the plain head does not."""
    head = open_checkpoint(golden_checkpoint).tensors.load(f"{HEAD}.weight")
    first = write_adapter(tmp_path / "first", lora(HEAD, *head.shape))
    merged = open_checkpoint(golden_checkpoint, [first]).tensors.load(f"{HEAD}.weight")
    copies = {"merged": merged, "plain": head}
    second = {
        name: write_adapter(tmp_path / name, {**lora(HEAD, *head.shape), f"{HEAD}.base_layer.weight": copy.clone()})
        for name, copy in copies.items()
    }
    open_checkpoint(golden_checkpoint, [first, second["merged"]])
    with pytest.raises(CheckpointError, match="another base"):
        open_checkpoint(golden_checkpoint, [first, second["plain"]])


def test_an_adapter_is_no_source(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with nothing_left(tmp_path / "out"):
        ended = command(capsys, "export", adapter, "--out", "out")
    ended.refused_with(2, ["is an adapter", "base checkpoint", "--adapter"])


def test_no_adapter_directory(golden_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLAError) as caught:
        open_checkpoint(golden_checkpoint, [tmp_path / "nowhere"])
    refused(caught, UsageError, ("nowhere", "no such directory"))


def test_malformed_statistics_of_an_adapter(golden_checkpoint: Path, adapter: Path) -> None:
    put(adapter / "dataset_statistics.json", json.dumps({"a": {"action": {"q01": [1]}}}))
    with pytest.raises(EdgeVLAError) as caught:
        open_checkpoint(golden_checkpoint, [adapter])
    refused(caught, CheckpointError, ("dataset_statistics.json", "'a'", "q99"))


def test_an_unknown_arithmetic(golden_checkpoint: Path, adapter: Path, tmp_path: Path, capsys: Any) -> None:
    with nothing_left(tmp_path / "out"):
        ended = command(
            capsys, "export", golden_checkpoint, "--adapter", adapter, "--merge-arithmetic", "fp8", "--out",
            tmp_path / "out",
        )  # fmt: skip
    ended.refused_with(2, ["--merge-arithmetic fp8", "fp32", "upstream"])
