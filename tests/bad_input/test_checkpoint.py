"""A damaged or foreign checkpoint is refused in words, by the library and by the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_vla.checkpoint import Checkpoint, key_table, open_checkpoint
from edge_vla.errors import CheckpointError, EdgeVLAError, UsageError
from edge_vla.openvla import Prompter
from tests.bad_input.damage import (
    Fault,
    command,
    cut,
    edit_json,
    edit_tensors,
    flip,
    link,
    names,
    nothing_left,
    put,
    refused,
    spoil,
)

BIG, SMALL = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX, CONFIG, STATISTICS = "model.safetensors.index.json", "config.json", "dataset_statistics.json"
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"
TOWER = "vision_backbone.featurizer.blocks.0.attn.qkv.weight"
FC1 = "projector.fc1.weight"


def read_everything(checkpoint: Checkpoint) -> None:
    """Load what an action depends on, as an export does."""
    for name, key in key_table(checkpoint.config.spec).items():
        if key.live:
            checkpoint.tensors.load(name)
    Prompter(checkpoint.tokenizer_json, checkpoint.config.prompt, checkpoint.config.spec.decoder)("open the drawer")


def entry(raw: dict[str, Any], *path: str) -> Any:
    for key in path:
        raw = raw[key]
    return raw


def config(key: str, value: object, *path: str) -> Any:
    """Damage that sets one key of config.json."""
    return lambda d: edit_json(d / CONFIG, lambda raw: entry(raw, *path).__setitem__(key, value))


def statistics(key: str, value: object) -> Any:
    """Damage that sets one key of the action statistics of the only data set."""

    def change(raw: dict[str, Any]) -> None:
        for name in [*raw][1:]:
            del raw[name]
        raw["bridge_orig"]["action"][key] = value

    return lambda d: edit_json(d / STATISTICS, change)


def tensor(change: Any) -> Any:
    return lambda d: edit_tensors(d / BIG, change)


def unlisted(name: str) -> Any:
    return lambda d: edit_json(d / INDEX, lambda raw: raw["weight_map"].pop(name))


def twice_in_index(directory: Path) -> None:
    text = (directory / INDEX).read_text(encoding="utf-8")
    put(directory / INDEX, text.replace('"weight_map": {', f'"weight_map": {{"{QUERY}": "{BIG}", '))


def in_both_shards(directory: Path) -> None:
    extra = load_file(directory / BIG)[QUERY]
    edit_tensors(directory / SMALL, lambda tensors: tensors.__setitem__(QUERY, extra.clone()))


def flip_header(bit: int) -> Any:
    return lambda d: flip(d / BIG, bit)


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[QUERY] = tensors[QUERY].to(torch.int32)


def no_index(directory: Path) -> None:
    (directory / INDEX).unlink()


def add_tower_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["vision_backbone.featurizer.extra.weight"] = torch.zeros(2)


def no_statistics(directory: Path) -> None:
    (directory / STATISTICS).unlink()
    edit_json(directory / CONFIG, lambda raw: raw.pop("norm_stats"))


def statistics_as_list(directory: Path) -> None:
    (directory / STATISTICS).unlink()
    edit_json(directory / CONFIG, lambda raw: raw.__setitem__("norm_stats", ["bridge_orig"]))


FAULTS = [
    Fault("shard missing", lambda d: (d / SMALL).unlink(), CheckpointError, (SMALL, "missing", "expected", "download")),
    Fault("index missing", no_index, CheckpointError, ("missing", INDEX, "download")),
    Fault("index entry missing", unlisted(QUERY), CheckpointError, (BIG, "disagree", QUERY, "download")),
    Fault("shard unlisted", unlisted("language_model.lm_head.weight"), CheckpointError, ("lm_head", "download")),
    Fault("shard lacks", tensor(lambda t: t.pop(QUERY)), CheckpointError, ("disagree", QUERY, "download")),
    Fault("index empty", lambda d: put(d / INDEX, '{"weight_map": {}}'), CheckpointError, (INDEX, "no tensors")),
    Fault("index not JSON", lambda d: cut(d / INDEX, 99), CheckpointError, (INDEX, "download")),
    Fault("index a list", lambda d: put(d / INDEX, "[1]"), CheckpointError, (INDEX, "not a safetensors index")),
    Fault("index twice", twice_in_index, CheckpointError, (INDEX, QUERY, "more than once")),
    Fault("in both shards", in_both_shards, CheckpointError, (SMALL, "disagree", QUERY)),
    Fault("shard truncated", lambda d: cut(d / BIG, -1), CheckpointError, (BIG, "truncated", "download")),
    Fault("shard halved", lambda d: cut(d / SMALL, 4_000_000), CheckpointError, (SMALL, "truncated", "download")),
    Fault("shard empty", lambda d: put(d / SMALL, b""), CheckpointError, (SMALL, "download")),
    Fault("shard longer", lambda d: put(d / SMALL, (d / SMALL).read_bytes() + b"x"), CheckpointError, (SMALL,)),
    Fault("length flipped", flip_header(40), CheckpointError, (BIG, "download")),
    Fault("brace flipped", flip_header(64), CheckpointError, (BIG, "download")),
    Fault("wrong shape", tensor(lambda t: t.__setitem__(FC1, t[FC1][:-1].clone())), CheckpointError, (FC1, CONFIG)),
    Fault("transposed", tensor(lambda t: t.__setitem__(FC1, t[FC1].T.contiguous())), CheckpointError, (FC1, CONFIG)),
    Fault("integers", tensor(integers), CheckpointError, (QUERY, "I32", "expected")),
    Fault("NaN in decoder", tensor(lambda t: spoil(t, QUERY, float("nan"))), CheckpointError, (QUERY, "1 non-finite")),
    Fault("Inf in tower", tensor(lambda t: spoil(t, TOWER, float("inf"))), CheckpointError, (TOWER, "1 non-finite")),
    Fault("-Inf in fc1", tensor(lambda t: spoil(t, FC1, -float("inf"))), CheckpointError, (FC1, "1 non-finite")),
    Fault("no config", lambda d: (d / CONFIG).unlink(), CheckpointError, (CONFIG, "missing", "expected")),
    Fault("config not JSON", lambda d: cut(d / CONFIG, -9), CheckpointError, (CONFIG, "JSON", "download")),
    Fault("config not UTF-8", lambda d: put(d / CONFIG, b'{"a": "\xff"}'), CheckpointError, (CONFIG, "JSON")),
    Fault("config nested", lambda d: put(d / CONFIG, "[" * 200_000), CheckpointError, (CONFIG, "JSON")),
    Fault("config a number", lambda d: put(d / CONFIG, "7"), CheckpointError, (CONFIG, "object", "int")),
    Fault("another model", config("model_type", "llava"), CheckpointError, ("llava", "expected 'openvla'")),
    Fault("unknown backbone", config("vision_backbone_id", "clip"), CheckpointError, ("clip", "supported")),
    Fault("unknown tower", config("timm_model_ids", ["a", "b"]), CheckpointError, ("'a'", "supported")),
    Fault("unknown language", config("llm_backbone_id", "phi-2"), CheckpointError, ("phi-2", "supported")),
    Fault("bins a word", config("n_action_bins", "many"), CheckpointError, (CONFIG, "many")),
    Fault("too many bins", config("n_action_bins", 10**9), CheckpointError, (CONFIG, "1000000000")),
    Fault("width a text", config("hidden_size", "128", "text_config"), CheckpointError, (CONFIG, "'128'", "int")),
    Fault("heads", config("num_attention_heads", 5, "text_config"), CheckpointError, (CONFIG, "heads 5", "128")),
    Fault("no heads", config("num_attention_heads", 0, "text_config"), CheckpointError, (CONFIG, "heads 0")),
    Fault("text a list", config("text_config", [1]), CheckpointError, (CONFIG, "malformed")),
    Fault("more layers", config("num_hidden_layers", 4, "text_config"), CheckpointError, ("lacks", "layers.3")),
    Fault("fewer layers", config("num_hidden_layers", 2, "text_config"), CheckpointError, ("unknown", "layers.2")),
    Fault("rope scaling", config("rope_scaling", {"type": "linear"}, "text_config"), CheckpointError, ("plain Llama",)),
    Fault("no tokenizer", lambda d: (d / "tokenizer.json").unlink(), CheckpointError, ("tokenizer.json", "copy it")),
    Fault("tokenizer broken", lambda d: put(d / "tokenizer.json", b"{}"), CheckpointError, ("tokenizer.json",)),
    Fault("tokenizer not UTF-8", lambda d: put(d / "tokenizer.json", b"\xff"), CheckpointError, ("UTF-8", "download")),
    Fault("no statistics", no_statistics, CheckpointError, (STATISTICS, "no action statistics", "expected")),
    Fault("statistics a list", statistics_as_list, CheckpointError, ("object by data set", "bridge_orig")),
    Fault("statistics empty", lambda d: put(d / STATISTICS, "{}"), CheckpointError, (STATISTICS, "at least one")),
    Fault("no action", lambda d: put(d / STATISTICS, '{"a": {"b": 1}}'), CheckpointError, ("'a'", "'action'")),
    Fault("no q99", lambda d: put(d / STATISTICS, '{"a": {"action": {"q01": [1]}}}'), CheckpointError, ("'a'", "q99")),
    Fault("q01 a text", statistics("q01", "low"), CheckpointError, ("bridge_orig", "list", "q01")),
    Fault("q01 short", statistics("q01", [0.0]), CheckpointError, ("bridge_orig", "(1,)", "(7,)")),
    Fault("q99 infinite", statistics("q99", [1e999] * 7), CheckpointError, ("bridge_orig", "finite")),
    Fault("q99 null", statistics("q99", [None] * 7), CheckpointError, ("bridge_orig", "finite")),
    Fault("q99 huge", statistics("q99", [10**400] * 7), CheckpointError, ("bridge_orig", "q99")),
    Fault("mask of texts", statistics("mask", ["False"] * 7), CheckpointError, ("bridge_orig", "true and false")),
    Fault("mask long", statistics("mask", [True] * 8), CheckpointError, ("bridge_orig", "(8,)")),
]


def adopt_unknown(directory: Path) -> None:
    edit_tensors(directory / BIG, add_tower_tensor)
    edit_json(
        directory / INDEX, lambda raw: raw["weight_map"].__setitem__("vision_backbone.featurizer.extra.weight", BIG)
    )


def preprocessor(key: str, value: object) -> Any:
    return lambda d: edit_json(d / "preprocessor_config.json", lambda raw: raw.__setitem__(key, value))


NORMALISE: list[dict[str, list[float]]] = [{"mean": [0.5] * 3, "std": [0.5] * 3}] * 2
FAULTS += [
    Fault("unknown tensor", adopt_unknown, CheckpointError, ("1 unknown", "featurizer.extra.weight", CONFIG)),
    Fault("bilinear", preprocessor("tvf_resize_params", [{"interpolation": 2}]), CheckpointError, ("bicubic", "{2}")),
    Fault("crop", preprocessor("image_resize_strategy", "resize-crop"), CheckpointError, ("resize-crop", "known")),
    Fault("one tower", preprocessor("tvf_normalize_params", NORMALISE[:1]), CheckpointError, ("expected 2", "got 1")),
    Fault("no mean", preprocessor("tvf_normalize_params", [{}] * 2), CheckpointError, ("preprocessor", "'mean'")),
    Fault(
        "four channels",
        preprocessor("tvf_normalize_params", [{"mean": [0.5] * 4, "std": [0.5] * 4}] * 2),
        CheckpointError,
        ("three channels",),
    ),
    Fault(
        "deviation 0",
        preprocessor("tvf_normalize_params", [{"mean": [0.5] * 3, "std": [0.0] * 3}] * 2),
        CheckpointError,
        ("positive",),
    ),
]


def test_the_sound_checkpoint_opens(golden_checkpoint: Path, tmp_path: Path) -> None:
    """Otherwise every test below would pass for a wrong reason; copying must not matter either."""
    read_everything(open_checkpoint(link(golden_checkpoint, tmp_path / "copy")))


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_a_damaged_checkpoint_is_refused(
    fault: Fault, golden_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = link(golden_checkpoint, tmp_path / "checkpoint")
    fault.damage(checkpoint)
    with pytest.raises(EdgeVLAError) as caught:
        read_everything(open_checkpoint(checkpoint))
    refused(caught, fault.error, fault.words)
    out = tmp_path / "out"
    with nothing_left(out):
        ended = command(capsys, "export", checkpoint, "--out", out)
    # Only a damaged number is found after some progress was told.
    ended.refused_with(fault.error.exit_code, fault.words, lines=None if "finite" in fault.words[-1] else 1)


def test_any_flipped_bit_of_a_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """A shard has no checksum; but no flip of its header may give other numbers, or anything but our error."""
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    sound = {name: torch.randn(4, 6, generator=generator).bfloat16() for name in ("a.weight", "b.weight", "c.bias")}
    save_file(sound, path)
    original = path.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    from edge_vla.checkpoint import SafetensorsDirectory

    refusals = 0
    for bit in range(header * 8):
        put(path, original)
        flip(path, bit)
        try:
            source = SafetensorsDirectory(tmp_path)
            read = {name: source.load(name) for name in source.names()}
        except CheckpointError:
            refusals += 1
            continue
        # What is left is a tensor of another name, which the key table refuses.
        same = [name for name in read if name in sound]
        assert len(read) == len(sound)
        assert all(torch.equal(read[name], sound[name]) for name in same)
    assert refusals > header * 4, "most flips are seen"


def test_random_bytes_for_any_json_give_our_error(golden_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = link(golden_checkpoint, tmp_path / "checkpoint")
    dice, refusals = random.Random(0), 0
    for name in (CONFIG, STATISTICS, "preprocessor_config.json"):
        sound = (checkpoint / name).read_bytes()
        for _ in range(20):
            put(checkpoint / name, sound)
            flip(checkpoint / name, dice.randrange(len(sound) * 8))
            try:
                open_checkpoint(checkpoint)
            except CheckpointError as error:
                refusals += "\n" not in str(error)
        put(checkpoint / name, sound)
    assert refusals > 20, "flips were seen"


def test_f16_overflow_of_a_scale_is_refused(
    golden_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = link(golden_checkpoint, tmp_path / "checkpoint")
    edit_tensors(checkpoint / BIG, lambda tensors: spoil(tensors, QUERY, 1e30))
    out = tmp_path / "out"
    with nothing_left(out):
        command(capsys, "export", checkpoint, "--out", out).refused_with(4, ["too large", "fp16"], lines=None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", ("nowhere", "no such directory", "Hub id", "random:")),
        ("random:gpt", ("random:gpt", "random:openvla-7b")),
        ("a/b/c", ("a/b/c", "no such directory")),
    ],
)
def test_what_is_no_source(
    source: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgeVLAError) as caught:
        open_checkpoint(source)
    refused(caught, UsageError, words)
    with nothing_left(tmp_path / "out"):
        command(capsys, "export", source, "--out", "out").refused_with(2, words)


def test_the_index_is_the_one_copied(golden_checkpoint: Path) -> None:
    """The names used above are those of the golden checkpoint."""
    index = json.loads((golden_checkpoint / INDEX).read_text(encoding="utf-8"))["weight_map"]
    assert {index[name] for name in (QUERY, TOWER, FC1)} == {BIG}
    assert set(index.values()) == {BIG, SMALL}
