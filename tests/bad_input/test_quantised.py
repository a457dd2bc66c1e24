"""A quantised checkpoint that is damaged, foreign or of a kind not read is refused in words; so is a wrong --format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from edge_vla.checkpoint import key_table, open_checkpoint
from edge_vla.errors import CheckpointError, EdgeVLAError
from edge_vla.export import Recipe
from edge_vla.export.huggingface import export_checkpoint
from tests.bad_input.damage import (
    Fault,
    command,
    edit_json,
    edit_tensors,
    link,
    names,
    nothing_left,
    put,
    refused,
    spoil,
)
from tests.conftest import TINY

QUERY = "language_model.model.layers.0.self_attn.q_proj"
INDEX, CONFIG, SETTINGS = "model.safetensors.index.json", "config.json", "quantize_config.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantised")
    return {
        form: export_checkpoint(TINY, root / form, form, Recipe(group=32)) for form in ("gptq", "compressed-tensors")
    }


def shard(directory: Path) -> Path:
    """The one that holds the first layer."""
    index: dict[str, str] = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return directory / next(file for name, file in index.items() if name.startswith(QUERY))


def part(name: str, change: Any) -> Any:
    """Damage that puts another tensor, `change(tensor)`, in a part's place."""
    key = f"{QUERY}.{name}"
    return lambda d: edit_tensors(shard(d), lambda tensors: tensors.__setitem__(key, change(tensors[key]).contiguous()))


def without(name: str) -> Any:
    def damage(directory: Path) -> None:
        key = f"{QUERY}.{name}"
        edit_tensors(shard(directory), lambda tensors: tensors.pop(key))
        edit_json(directory / INDEX, lambda raw: raw["weight_map"].pop(key))

    return damage


def setting(key: str, value: object, *path: str) -> Any:
    """Damage that sets one key of `quantization_config`."""

    def change(raw: dict[str, Any]) -> None:
        inside = raw["quantization_config"]
        for step in path:
            inside = inside[step]
        inside[key] = value

    return lambda d: edit_json(d / CONFIG, change)


def no_settings(directory: Path) -> None:
    edit_json(directory / CONFIG, lambda raw: raw.pop("quantization_config"))
    (directory / SETTINGS).unlink(missing_ok=True)


def settings_beside(directory: Path) -> None:
    """Where older programs kept them, and not quite right."""
    edit_json(directory / CONFIG, lambda raw: raw.pop("quantization_config"))
    edit_json(directory / SETTINGS, lambda raw: raw.__setitem__("bits", 3))


def spoiled(value: float) -> Any:
    return lambda d: edit_tensors(shard(d), lambda tensors: spoil(tensors, f"{QUERY}.scales", value))


def outside(tensor: Tensor) -> Tensor:
    moved = tensor.clone()
    moved[3] = 99
    return moved


GPTQ = [
    Fault("qzeros short", part("qzeros", lambda t: t[:, :-1]), CheckpointError, (QUERY, "qzeros", "(2, 7)", "(2, 8)")),
    Fault("qzeros turned", part("qzeros", lambda t: t.T), CheckpointError, (QUERY, "qzeros", "(8, 2)", "download")),
    Fault("scales short", part("scales", lambda t: t[:1]), CheckpointError, (QUERY, "scales", "(1, 64)", "(2, 64)")),
    Fault("qweight long", part("qweight", lambda t: t.long()), CheckpointError, (QUERY, "qweight", "int64", "int32")),
    Fault("qweight flat", part("qweight", lambda t: t.flatten()), CheckpointError, (QUERY, CONFIG)),
    Fault("qweight narrow", part("qweight", lambda t: t[:, 1:]), CheckpointError, (QUERY, "(63, 64)", CONFIG)),
    Fault("g_idx outside", part("g_idx", outside), CheckpointError, (QUERY, "g_idx", "outside 0..1", "download")),
    Fault("g_idx negative", part("g_idx", lambda t: -1 - t), CheckpointError, (QUERY, "g_idx", "outside 0..1")),
    Fault("g_idx short", part("g_idx", lambda t: t[1:]), CheckpointError, (QUERY, "g_idx", "(63,)", "(64,)")),
    Fault("no scales", without("scales"), CheckpointError, (QUERY, "lacks ['scales']", "download")),
    Fault("no qzeros", without("qzeros"), CheckpointError, (QUERY, "lacks ['qzeros']", "download")),
    Fault("NaN scale", spoiled(float("nan")), CheckpointError, (QUERY, "1 non-finite")),
    Fault("Inf scale", spoiled(float("inf")), CheckpointError, (QUERY, "1 non-finite")),
    Fault("3 bits", setting("bits", 3), CheckpointError, ("bits 3", "[4, 8]", "16-bit checkpoint")),
    Fault("bits a text", setting("bits", "4"), CheckpointError, ("bits", "expected int", "'4'")),
    Fault("8 bits said", setting("bits", 8), CheckpointError, ("model.layers", CONFIG)),
    Fault("group 48", setting("group_size", 48), CheckpointError, ("model.layers", "48", "does not divide its")),
    Fault("group 0", setting("group_size", 0), CheckpointError, ("group_size 0", "positive")),
    Fault("group 64 said", setting("group_size", 64), CheckpointError, (QUERY, "qzeros", "(2, 8)", "(1, 8)")),
    Fault("marlin", setting("checkpoint_format", "marlin"), CheckpointError, ("marlin", "gptq_v2")),
    Fault("wide words", setting("pack_dtype", "int64"), CheckpointError, ("pack_dtype", "int64")),
    Fault("dynamic", setting("dynamic", {"+:.*q_proj": {"bits": 8}}), CheckpointError, ("dynamic", "q_proj")),
    Fault("dynamic a list", setting("dynamic", [1]), CheckpointError, ("malformed", "download")),
    Fault("awq", setting("quant_method", "awq"), CheckpointError, ("quant_method 'awq'", "gptq", "16-bit checkpoint")),
    Fault("method a list", setting("quant_method", []), CheckpointError, ("quant_method []", "gptq")),
    Fault("int8 bitsandbytes", setting("quant_method", "bitsandbytes"), CheckpointError, ("load_in_4bit", "16-bit")),
    Fault("no settings", no_settings, CheckpointError, ("I32", "expected", "quantization_config")),
    Fault("settings beside", settings_beside, CheckpointError, ("bits 3", "[4, 8]")),
    Fault("not an object", lambda d: edit_json(d / CONFIG, lambda raw: raw.__setitem__("quantization_config", 4)),
          CheckpointError, ("JSON object", "4", "download")),
]  # fmt: skip

WEIGHTS = ("config_groups", "group_0", "weights")
COMPRESSED = [
    Fault("shape 3", part("weight_shape", lambda t: torch.tensor([64, 64, 1])), CheckpointError, (QUERY, "(3,)")),
    Fault("shape wrong", part("weight_shape", lambda t: t + 32), CheckpointError, (QUERY, "(96, 96)", CONFIG)),
    Fault("packed short", part("weight_packed", lambda t: t[:, 1:]), CheckpointError, (QUERY, "packed", "(64, 7)")),
    Fault("no scale", without("weight_scale"), CheckpointError, (QUERY, "lacks ['weight_scale']")),
    Fault("3 bits", setting("num_bits", 3, *WEIGHTS), CheckpointError, ("num_bits 3", "[4, 8]")),
    Fault("floats", setting("type", "float", *WEIGHTS), CheckpointError, ("type 'float'", "int")),
    Fault("blocks", setting("strategy", "block", *WEIGHTS), CheckpointError, ("strategy 'block'", "channel")),
    Fault("group 48", setting("group_size", 48, *WEIGHTS), CheckpointError, ("48", "does not divide")),
    Fault("group null", setting("group_size", None, *WEIGHTS), CheckpointError, ("group_size None", "positive")),
    Fault("activations", setting("input_activations", {"a": 8}, *WEIGHTS[:2]), CheckpointError, ("activations",)),
    Fault("another format", setting("format", "marlin-24"), CheckpointError, ("marlin-24", "pack-quantized")),
    Fault("no groups", setting("config_groups", {}), CheckpointError, ("0 config_groups", "expected one")),
    Fault("no weights", lambda d: edit_json(d / CONFIG, lambda raw: raw["quantization_config"]["config_groups"]
          ["group_0"].pop("weights")), CheckpointError, ("malformed", "weights")),
]  # fmt: skip
FAULTS = [("gptq", fault) for fault in GPTQ] + [("compressed-tensors", fault) for fault in COMPRESSED]


def test_the_sound_ones_open(sound: dict[str, Path], tmp_path: Path) -> None:
    for form, directory in sound.items():
        read_all(link(directory, tmp_path / form))


def read_all(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    for name, key in key_table(checkpoint.config.spec).items():
        if key.live:
            checkpoint.tensors.load(name)


@pytest.mark.parametrize(("form", "fault"), FAULTS, ids=[f"{form}: {fault.name}" for form, fault in FAULTS])
def test_a_damaged_one_is_refused(
    form: str, fault: Fault, sound: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(GPTQ)
    assert names(COMPRESSED)
    checkpoint = link(sound[form], tmp_path / "checkpoint")
    fault.damage(checkpoint)
    with pytest.raises(EdgeVLAError) as caught:
        read_all(checkpoint)
    refused(caught, fault.error, fault.words)
    out = tmp_path / "out"
    with nothing_left(out):
        ended = command(capsys, "export", checkpoint, "--out", out, "--format", "gptq")
    ended.refused_with(fault.error.exit_code, fault.words, lines=None)


STATES: list[tuple[bytes, tuple[str, ...]]] = [
    (b"{", ("malformed",)),
    (b"[]", ("malformed",)),
    (b'{"blocksize": 64, "dtype": "bfloat16", "shape": [64]}', ("(64,)", CONFIG)),
    (b'{"blocksize": 0, "dtype": "bfloat16", "shape": [64, 64]}', ("malformed", "blocksize")),
    (b'{"blocksize": 64, "dtype": "int8", "shape": [64, 64]}', ("malformed", "int8")),
    (b'{"blocksize": 32, "dtype": "bfloat16", "shape": [64, 64]}', ("absmax", "(64,)", "(128,)")),
    (b'{"blocksize": 64, "dtype": "bfloat16", "shape": [64, 64], "nested_blocksize": 256}', ("nested_absmax",)),
]


@pytest.mark.parametrize(("state", "words"), STATES, ids=[str(words) for _, words in STATES])
def test_bitsandbytes_states(state: bytes, words: tuple[str, ...], sound: dict[str, Path], tmp_path: Path) -> None:
    """A plain checkpoint with one matrix as bitsandbytes stores it, and its state broken."""
    directory = link(sound["gptq"], tmp_path / "checkpoint")
    parts = {
        "weight": torch.zeros(2048, 1, dtype=torch.uint8),
        "weight.absmax": torch.ones(64),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
    }
    source, tensors = open_checkpoint(TINY).tensors, dict[str, Tensor]()
    with safe_open(shard(directory), framework="pt") as file:
        linears = {name.rpartition(".")[0] for name in file.keys() if name.endswith("qweight")}  # noqa: SIM118
        tensors |= {name: file.get_tensor(name) for name in file.keys() if name.endswith("layernorm.weight")}  # noqa: SIM118
    tensors |= {f"{name}.weight": source.load(f"{name}.weight") for name in linears - {QUERY}}
    tensors |= {f"{QUERY}.{part}": tensor for part, tensor in parts.items()}
    others = {name.replace(".0.", ".1.", 1): tensor.clone() for name, tensor in tensors.items() if QUERY not in name}
    _replace(directory, tensors, others | {f"{QUERY}.weight".replace(".0.", ".1.", 1): source.load(f"{QUERY}.weight")})
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(directory / CONFIG, lambda raw: raw.__setitem__("quantization_config", bits))
    with pytest.raises(EdgeVLAError) as caught:
        read_all(directory)
    refused(caught, CheckpointError, words)


def _replace(directory: Path, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Other tensors for the two layers, in shard and index."""
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    for number, tensors in enumerate((first, second)):
        inside = f"language_model.model.layers.{number}."
        file = next(file for name, file in index["weight_map"].items() if name.startswith(inside))
        index["weight_map"] = {name: at for name, at in index["weight_map"].items() if not name.startswith(inside)}
        index["weight_map"] |= dict.fromkeys(tensors, file)

        def swap(stored: dict[str, Tensor], tensors: dict[str, Tensor] = tensors) -> None:
            stored.clear()
            stored.update(tensors)

        edit_tensors(directory / file, swap)
    put(directory / INDEX, json.dumps(index))


OPTIONS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--format", "awq"), ("--format awq", "artifact", "gptq", "compressed-tensors")),
    (("--format", "gptq", "--bits", "3"), ("--format gptq", "[4, 8]", "--bits")),
    (("--format", "gptq", "--bits", "16"), ("--format gptq", "[4, 8]", "--bits")),
    (("--format", "gptq", "--group", "48"), ("groups of 48", "q_proj", "(64, 64)")),
    (("--format", "gptq", "--vision-bits", "8"), ("--format gptq", "16 bits", "--vision-bits")),
    (("--format", "gptq", "--method", "gptq"), ("gptq needs frames", "--frames")),
    (("--decoder-only",), ("--decoder-only", "gptq", "compressed-tensors", "artifact")),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[" ".join(options) for options, _ in OPTIONS])
def test_wrong_options(
    options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with nothing_left(out):
        command(capsys, "export", TINY, "--out", out, *options).refused_with(2, words)


def test_an_artifact_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_artifacts: Any) -> None:
    out = tmp_path / "out"
    with nothing_left(out):
        ended = command(capsys, "export", tiny_artifacts[4], "--out", out, "--format", "gptq")
    ended.refused_with(2, ("is an artifact", "the checkpoint that it was made from"))


def test_what_exists_is_not_overwritten(sound: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command(capsys, "export", TINY, "--out", sound["gptq"], "--format", "gptq").refused_with(2, ("exists already",))
