"""`export --format`: what other programs' checkpoints hold, and that reading one back loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import edge_vla
from benchmarks.formats.interop import CASES, compare
from edge_vla.artifact import Artifact
from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.keys import layer_prefix
from edge_vla.checkpoint.quantised import DequantisedTensors
from edge_vla.cli import main
from edge_vla.data import read_frames, synthetic_image
from edge_vla.demo import BASE
from edge_vla.export import Recipe, export
from edge_vla.export.huggingface import export_checkpoint
from edge_vla.export.progress import Silent
from edge_vla.inspection import describe
from edge_vla.openvla import PolicyConfig
from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from tests.bad_input.damage import nothing_left
from tests.conftest import TINY
from tests.export.crash import tiny_frames

FORMS = pytest.mark.parametrize("form", ["gptq", "compressed-tensors"])
QUERY = f"{layer_prefix(0)}self_attn.q_proj"
# The command that this needs is in docs/interop.md.
THERE = os.environ.get("EDGE_VLA_GPTQ_PYTHON")


def sha256s(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same(ours: PackedWeight, theirs: PackedWeight) -> bool:
    """Codes and scales to the bit."""
    assert ours.scales is not None
    assert theirs.scales is not None
    return torch.equal(ours.codes, theirs.codes) and torch.equal(ours.scales, theirs.scales)


@FORMS
@pytest.mark.parametrize(("bits", "scheme"), [(4, Scheme.INT4), (8, Scheme.INT8)])
def test_read_back(form: str, bits: int, scheme: Scheme, tmp_path: Path) -> None:
    """Every other tensor as it was; every linear as rounding gives it, and its codes unchanged."""
    source = open_checkpoint(TINY)
    back = open_checkpoint(export_checkpoint(TINY, tmp_path / "out", form, Recipe(bits=bits)))
    assert isinstance(back.tensors, DequantisedTensors)
    assert back.tensors.names() == source.tensors.names()
    linears = {
        f"{layer_prefix(i)}{name}.weight"
        for i in range(source.config.spec.decoder.layers)
        for name in source.config.spec.decoder.linears()
    }
    for name in source.tensors.names():
        weight, got = source.tensors.load(name), back.tensors.load(name)
        if name not in linears:
            assert torch.equal(got, weight)
            continue
        rounded = quantise(weight, scheme, 64 if bits == 4 else None)
        assert torch.equal(got, dequantise(rounded, got.dtype))
        kept = back.tensors.packed(name)
        assert kept is not None
        assert same(kept, rounded)


@FORMS
def test_settings_read_back(form: str, tmp_path: Path, golden_checkpoint: Path) -> None:
    sources: list[str | Path] = [TINY, golden_checkpoint]
    for number, source in enumerate(sources):
        expected = open_checkpoint(source).config
        out = export_checkpoint(source, tmp_path / str(number), form)
        got = PolicyConfig.read(out)
        assert (got.spec, got.prompt, got.image) == (expected.spec, expected.prompt, expected.image)
        assert got.statistics.raw == expected.statistics.raw


def test_the_source_s_own_files_go_along(golden_checkpoint: Path, tmp_path: Path) -> None:
    out = export_checkpoint(golden_checkpoint, tmp_path / "out", "gptq")
    for name in ("preprocessor_config.json", "dataset_statistics.json", "tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (golden_checkpoint / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    theirs = json.loads((golden_checkpoint / "config.json").read_text())
    assert {**theirs, **config} == config, "only added to"
    assert config["quantization_config"] == json.loads((out / "quantize_config.json").read_text())
    assert config["quantization_config"]["block_name_to_quantize"] == "language_model.model.layers"


def test_gptq_s_numbers(tmp_path: Path) -> None:
    """What loaders look for: shapes, types, and zeros stored minus one."""
    out = export_checkpoint(BASE, tmp_path / "out", "gptq")
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    shard = load_file(out / index[f"{QUERY}.qweight"])
    width, group = 256, 128
    assert f"{QUERY}.weight" not in shard
    for part, shape, dtype in (
        ("qweight", (width // 8, width), torch.int32),
        ("qzeros", (width // group, width // 8), torch.int32),
        ("scales", (width // group, width), torch.float16),
        ("g_idx", (width,), torch.int32),
    ):
        assert (tuple(shard[f"{QUERY}.{part}"].shape), shard[f"{QUERY}.{part}"].dtype) == (shape, dtype)
    assert set(shard[f"{QUERY}.qzeros"].flatten().tolist()) == {0x77777777}
    assert shard[f"{QUERY}.g_idx"].tolist() == [k // group for k in range(width)]


@FORMS
def test_the_decoder_alone(form: str, tmp_path: Path) -> None:
    """A plain Llama: the whole policy's numbers under a Llama's names."""
    alone = export_checkpoint(TINY, tmp_path / "alone", form, decoder_only=True)
    whole = export_checkpoint(TINY, tmp_path / "whole", form)
    config = json.loads((alone / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    inside, outside = (
        {name: tensor for path in sorted(out.glob("*.safetensors")) for name, tensor in load_file(path).items()}
        for out in (alone, whole)
    )
    assert set(inside) == {n.removeprefix("language_model.") for n in outside if n.startswith("language_model.")}
    assert all(torch.equal(tensor, outside[f"language_model.{name}"]) for name, tensor in inside.items())


@FORMS
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.filterwarnings("ignore:tokenizer.json has 320 pieces")  # a stand-in, smaller than its network's table
def test_an_artifact_from_it_has_the_same_codes(form: str, group: int | None, tmp_path: Path) -> None:
    """The group is taken over, too."""
    quantised = export_checkpoint(TINY, tmp_path / "quantised", form, Recipe(group=group))
    direct = export(TINY, tmp_path / "direct", Recipe(group=group or 64))  # the largest that fits all linears
    again = export(quantised, tmp_path / "again")
    for (ours, _), (theirs, _) in zip(direct.layers(), again.layers(), strict=True):
        for name, packed in ours.items():
            assert theirs[name].group == packed.group == (group or 64)
            assert same(theirs[name], packed)


def test_it_acts_as_the_artifact_does(tmp_path: Path) -> None:
    """In float32 the weights are the same numbers."""
    quantised = edge_vla.load(export_checkpoint(BASE, tmp_path / "quantised", "gptq"), "cpu", dtype="fp32")
    made = export(BASE, tmp_path / "artifact").directory
    artifact = edge_vla.load(made, "cpu", dtype="fp32", kernel="reference")
    for seed in range(4):
        image = synthetic_image(seed, 112)
        got, expected = (policy.act(image, "put the red block on the blue pad") for policy in (quantised, artifact))
        assert got.tokens == expected.tokens
        assert got.margins == pytest.approx(expected.margins, abs=1e-3)


@FORMS
def test_calibrated_codes_are_those_of_the_artifact(form: str, tmp_path: Path) -> None:
    tiny_frames(tmp_path / "frames")
    frames, recipe = read_frames(tmp_path / "frames"), Recipe(method="gptq", group=64)
    artifact = export(TINY, tmp_path / "artifact", recipe, frames=frames)
    back = open_checkpoint(export_checkpoint(TINY, tmp_path / "out", form, recipe, frames=frames)).tensors
    assert isinstance(back, DequantisedTensors)
    for index, (linears, _) in enumerate(Artifact(artifact.directory).layers()):
        for name, packed in linears.items():
            kept = back.packed(f"{layer_prefix(index)}{name}.weight")
            assert kept is not None
            assert torch.equal(kept.codes, packed.codes)


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    first, second = (sha256s(export_checkpoint(TINY, tmp_path / name, "gptq")) for name in ("a", "b"))
    assert first == second


class Stops(Silent):
    """Ctrl-C at the third shard."""

    count = 0

    def step(self, detail: str) -> None:
        self.count += detail.startswith("model-")
        if self.count == 3:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing_or_what_was_calibrated(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with nothing_left(out), pytest.raises(KeyboardInterrupt):
        export_checkpoint(TINY, out, "gptq", progress=Stops())
    tiny_frames(tmp_path / "frames")
    frames, recipe = read_frames(tmp_path / "frames"), Recipe(method="gptq", group=64)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(TINY, out, "gptq", recipe, frames=frames, progress=Stops())
    assert not out.exists()
    again = export_checkpoint(TINY, out, "gptq", recipe, frames=frames)
    assert sha256s(again) == sha256s(export_checkpoint(TINY, tmp_path / "never", "gptq", recipe, frames=frames))
    assert not out.with_name("out.partial").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["export", TINY, "--out", str(out), "--format", "gptq", "--group", "32"])
    assert not ended.value.code
    assert "gptq, whole policy" in capsys.readouterr().err
    parts = {part.part: part.format for part in describe(str(out)).parts}
    assert parts["decoder linears"] == "gptq, 4 bits, groups of 32"


def test_bitsandbytes_can_be_the_source(golden_checkpoint: Path, tmp_path: Path) -> None:
    """A policy with one linear of the decoder and one of a tower in NF4, the values chosen here."""
    source = open_checkpoint(golden_checkpoint)
    tensors = {name: source.tensors.load(name) for name in source.tensors.names()}
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(-1, 1, 16)
    expected = {}
    for name in (f"{QUERY}.weight", "vision_backbone.featurizer.blocks.0.attn.qkv.weight"):
        shape = tensors[name].shape
        codes = torch.randint(0, 16, (shape.numel(),), generator=generator, dtype=torch.uint8)
        absmax = torch.rand(-(-shape.numel() // 64), generator=generator) + 0.1
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
        values = levels[codes.long()] * absmax.repeat_interleave(64)[: len(codes)]
        expected[name] = values.bfloat16().view(shape)
        tensors |= {
            name: (codes[0::2] << 4 | codes[1::2])[:, None],
            f"{name}.absmax": absmax,
            f"{name}.quant_map": levels.clone(),
            f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }
    out = tmp_path / "nf4"
    out.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    for path in golden_checkpoint.glob("*.json"):
        if "index" not in path.name:
            (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (out / "config.json").write_text(json.dumps(config))
    back = open_checkpoint(out).tensors
    for name in source.tensors.names():
        assert torch.equal(back.load(name), expected.get(name, tensors[name])), name
    assert export(out, tmp_path / "artifact", Recipe(bits=8)).manifest.layers[0]["self_attn.q_proj"].error < 0.02


@pytest.mark.skipif(THERE is None, reason="EDGE_VLA_GPTQ_PYTHON names no environment with gptqmodel (docs/interop.md)")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_other_programs_compute_the_same(case: tuple[str, int, str]) -> None:
    assert THERE is not None
    found = compare(THERE, BASE, *case)
    assert 0 < found.difference <= 1.5 * found.rounding
    assert found.same_token > 0.95
