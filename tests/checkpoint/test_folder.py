"""Which files of a folder win: tensor by tensor what transformers reads there, or a line that says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_vla.checkpoint import open_checkpoint
from edge_vla.errors import CheckpointError
from tests.bad_input.damage import edit_json, edit_tensors, link, lora, put, write_adapter
from tests.checkpoint import upstream

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
BIG, SMALL = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"
ROTARY = "language_model.model.layers.{}.self_attn.rotary_emb.inv_freq"


@dataclass(frozen=True)
class Variant:
    """`change` makes another folder of the golden one, which must be read as transformers reads it.

    `ignored` are names that the reading must say it left out; `doubts` words of each doubt, in order.
    """

    name: str
    change: Callable[[Path], object]
    ignored: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def whole(directory: Path) -> dict[str, Tensor]:
    return {**load_file(directory / BIG), **load_file(directory / SMALL)}


def other_numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def unshard(directory: Path) -> None:
    """As `save_pretrained` with a larger `max_shard_size` would, into a folder of its own."""
    tensors = whole(directory)
    for name in (BIG, SMALL, INDEX):
        (directory / name).unlink()
    save_file(tensors, directory / SINGLE)


def single_beside_old_index(directory: Path) -> None:
    save_file(other_numbers(whole(directory)), directory / SINGLE)
    (directory / BIG).unlink()
    (directory / SMALL).unlink()


def single_beside_old_shards(directory: Path) -> None:
    save_file(other_numbers(whole(directory)), directory / SINGLE)


def single_beside_broken_index(directory: Path) -> None:
    save_file(whole(directory), directory / SINGLE)
    put(directory / INDEX, "{")


def shards_beside_another(directory: Path) -> None:
    save_file(other_numbers(whole(directory)), directory / "model-00001-of-00001.safetensors")


def shards_beside_pickle(directory: Path) -> None:
    torch.save(other_numbers(whole(directory)), directory / "pytorch_model.bin")


def shards_beside_variant(directory: Path) -> None:
    save_file(other_numbers(whole(directory)), directory / "model.fp16.safetensors")


def shards_beside_consolidated(directory: Path) -> None:
    save_file(other_numbers(whole(directory)), directory / "consolidated.safetensors")


def shards_in_a_subfolder(directory: Path) -> None:
    """The index points below; a file of the same name at the top is not the one."""
    (directory / "weights").mkdir()
    shutil.copy(directory / SMALL, directory / "weights" / SMALL)
    edit_tensors(directory / SMALL, lambda tensors: tensors.update(other_numbers(tensors)))
    text = (directory / INDEX).read_text(encoding="utf-8")
    put(directory / INDEX, text.replace(f'"{SMALL}"', f'"weights/{SMALL}"'))


def named_by_config(directory: Path) -> None:
    unshard(directory)
    (directory / SINGLE).rename(directory / "policy.safetensors")
    edit_json(directory / CONFIG, lambda raw: raw.update(transformers_weights="policy.safetensors"))


def rotary_buffers(directory: Path) -> None:
    buffers = {ROTARY.format(layer): torch.arange(16, dtype=torch.float64) for layer in range(3)}
    edit_tensors(directory / BIG, lambda tensors: tensors.update(buffers))
    edit_json(directory / INDEX, lambda raw: raw["weight_map"].update(dict.fromkeys(buffers, BIG)))


def stored_as(dtype: torch.dtype) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        for name in (BIG, SMALL):
            edit_tensors(
                directory / name, lambda tensors: tensors.update({key: one.to(dtype) for key, one in tensors.items()})
            )

    return change


def adapter_weights_without_config(directory: Path) -> None:
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1)}, directory / "adapter_model.safetensors")


def links_as_in_the_hubs_cache(directory: Path) -> None:
    blobs = directory.parent / "blobs"
    blobs.mkdir()
    for path in sorted(directory.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(os.path.relpath(blobs / path.name, directory))


def trainer_state(directory: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"step": 1}, directory / name)


VARIANTS = [
    Variant("as on the Hub", lambda _: None),
    Variant("one file", unshard),
    Variant("one file, old index", single_beside_old_index, (INDEX,)),
    Variant("one file, old shards", single_beside_old_shards, (INDEX, BIG, SMALL)),
    Variant("one file, broken index", single_beside_broken_index, (INDEX, BIG, SMALL)),
    Variant("a shard too many", shards_beside_another, ("model-00001-of-00001.safetensors",)),
    Variant("a pickle beside", shards_beside_pickle, ("pytorch_model.bin",)),
    Variant("a variant beside", shards_beside_variant, ("model.fp16.safetensors",)),
    Variant("consolidated beside", shards_beside_consolidated, ("consolidated.safetensors",)),
    Variant("a shard in a subfolder", shards_in_a_subfolder, (SMALL,)),
    Variant("named by config.json", named_by_config),
    Variant("rotary buffers", rotary_buffers, ("3 tensors (rotary_emb.*)",)),
    Variant("float16", stored_as(torch.float16)),
    Variant("float32", stored_as(torch.float32)),
    Variant("adapter weights alone", adapter_weights_without_config, ("adapter_model.safetensors",)),
    Variant("links", links_as_in_the_hubs_cache),
    Variant("trainer state", trainer_state, ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin")),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_tensor_is_the_one_that_transformers_reads(
    variant: Variant, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    variant.change(directory)
    theirs, ours = upstream.tensors(directory), open_checkpoint(directory)
    assert ours.tensors.names() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours.tensors.load(name).float(), expected), name
    ignored = {use.name for use in ours.reading.ignored}
    assert ignored >= set(variant.ignored)
    assert ours.reading.doubts == ()
    # What was read and what was not are told apart, and nothing was both.
    read = {use.name for use in ours.reading.read}
    assert not read & ignored
    assert {path.relative_to(directory).as_posix() for path in ours.files[0]} <= read


def test_the_numbers_of_the_losing_files_are_others(golden_checkpoint: Path, tmp_path: Path) -> None:
    """Otherwise the test above would pass whichever file wins."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    single_beside_old_shards(directory)
    assert not torch.equal(load_file(directory / SINGLE)[QUERY], whole(directory)[QUERY])
    assert torch.equal(open_checkpoint(directory).tensors.load(QUERY), load_file(directory / SINGLE)[QUERY])


def adapter_beside(directory: Path) -> None:
    made = write_adapter(directory / "made", lora(QUERY.removesuffix(".weight"), 128, 128))
    for path in made.iterdir():
        path.rename(directory / path.name)
    made.rmdir()


def test_an_adapter_beside_the_weights_is_merged_where_the_user_says_so(
    golden_checkpoint: Path, tmp_path: Path
) -> None:
    """transformers 5 merges it into these weights; 4.40 into those of another folder, so without a word: refused."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    adapter_beside(directory)
    with pytest.raises(CheckpointError, match=r"holds weights and an adapter.*--adapter.*move adapter_config.json"):
        open_checkpoint(directory)
    merged, theirs = open_checkpoint(directory, [directory]), upstream.tensors(directory)
    assert not torch.equal(theirs[QUERY], open_checkpoint(golden_checkpoint).tensors.load(QUERY).float())
    for name, expected in theirs.items():
        assert torch.equal(merged.tensors.load(name), expected.to(torch.bfloat16)), name
    assert merged.reading.merged == (str(directory),)


def bin_only(directory: Path) -> None:
    torch.save(whole(directory), directory / "pytorch_model.bin")
    for name in (BIG, SMALL, INDEX):
        (directory / name).unlink()


def variant_only(directory: Path) -> None:
    unshard(directory)
    (directory / SINGLE).rename(directory / "model.fp16.safetensors")


def distributed(directory: Path) -> None:
    (directory / BIG).rename(directory / "shard-00000-model-00001-of-00001.safetensors")


def two_say_otherwise(directory: Path) -> None:
    edit_json(directory / CONFIG, lambda raw: raw.update(transformers_weights="policy.safetensors"))
    save_file(whole(directory), directory / "policy.safetensors")


def outside(directory: Path) -> None:
    text = (directory / INDEX).read_text(encoding="utf-8")
    put(directory / INDEX, text.replace(f'"{SMALL}"', f'"../{SMALL}"'))


def broken_link(directory: Path) -> None:
    unshard(directory)
    (directory / SINGLE).unlink()
    (directory / SINGLE).symlink_to("../blobs/gone")


NOT_READ: list[tuple[Callable[[Path], object], str]] = [
    (bin_only, r"pytorch_model.bin: pickled weights are not read.*save_pretrained"),
    (variant_only, r"model.fp16.safetensors is a variant: rename it to model.safetensors"),
    (distributed, r"shard of a distributed checkpoint.*save the model whole"),
    (two_say_otherwise, r"transformers_weights.*older versions.*model.safetensors.index.json: remove one"),
    (outside, r"outside its folder"),
    (broken_link, r"a link to nothing: download"),
]


@pytest.mark.parametrize(("change", "words"), NOT_READ, ids=lambda one: getattr(one, "__name__", ""))
def test_weights_that_are_not_read_have_their_remedy(
    change: Callable[[Path], object], words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    change(directory)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(directory)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 4900000000\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>401</title></head></html>"
ANNEX = "/annex/objects/SHA256E-s4900--00.safetensors\n"


@pytest.mark.parametrize(
    "name", [SMALL, INDEX, CONFIG, "tokenizer.json", "dataset_statistics.json", "preprocessor_config.json"]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [(POINTER, "a git-lfs pointer to 4.90 GB.*git lfs pull"), (PAGE, "a web page"), (ANNEX, "git annex get")],
    ids=["git-lfs", "page", "git-annex"],
)
def test_what_stands_in_for_a_file_is_named(
    name: str, content: str, words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    put(directory / name, content)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(directory)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "dataset_statistics.json"])
def test_what_stands_in_for_an_adapters_file_is_named(name: str, golden_checkpoint: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY.removesuffix(".weight"), 128, 128))
    put(adapter / name, POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a git-lfs pointer.*git lfs pull"):
        open_checkpoint(golden_checkpoint, [adapter])


def without(*keys: str) -> Callable[[dict[str, Any]], object]:
    return lambda raw: [raw.pop(key) for key in keys]


DEFAULTS: list[Callable[[dict[str, Any]], object]] = [
    without("n_action_bins", "pad_to_multiple_of"),
    without("timm_model_ids", "image_sizes", "timm_override_act_layers", "use_fused_vision_backbone"),
    lambda raw: raw.update(n_action_bins=None, pad_to_multiple_of=None, image_sizes=None),
    lambda raw: raw["text_config"].update(rms_norm_eps=None, rope_theta=None, max_position_embeddings=None),
    lambda raw: raw["text_config"].pop("model_type"),
    lambda raw: raw["text_config"].update(bos_token_id=[1], eos_token_id=[2]),
    lambda raw: raw["text_config"].update(bos_token_id=None, eos_token_id=None),
]


@pytest.mark.parametrize("change", DEFAULTS)
def test_defaults_absent_null_or_listed_are_the_same_policy(
    change: Callable[[dict[str, Any]], object], golden_checkpoint: Path, tmp_path: Path
) -> None:
    """What OpenVLA's config class fills in; the golden folder says it all."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    edit_json(directory / CONFIG, change)
    assert open_checkpoint(directory).config.spec == open_checkpoint(golden_checkpoint).config.spec


def test_image_settings_are_found_where_transformers_5_saves_them(golden_checkpoint: Path, tmp_path: Path) -> None:
    """`processor.save_pretrained` of transformers 5 writes them into processor_config.json alone."""
    expected, directory = open_checkpoint(golden_checkpoint).config.image, link(golden_checkpoint, tmp_path / "folder")
    own = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
    own["tvf_normalize_params"][0]["mean"] = [0.25, 0.25, 0.25]
    put(directory / "processor_config.json", json.dumps({"image_processor": own}))
    both = open_checkpoint(directory)
    assert both.config.image == expected
    assert [doubt for doubt in both.reading.doubts if "describe different images" in doubt]
    (directory / "preprocessor_config.json").unlink()
    alone = open_checkpoint(directory)
    assert alone.config.image.means[0] == (0.25, 0.25, 0.25)
    assert alone.reading.doubts == ()
    assert "processor_config.json" in {use.name for use in alone.reading.read}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("generation_config.json", {"repetition_penalty": 1.2}, "repetition_penalty to 1.2"),
        ("generation_config.json", {"num_beams": 4}, "num_beams to 4"),
        ("generation_config.json", {"suppress_tokens": [31872]}, "suppress_tokens"),
        ("config.json", {"pad_to_multiple_of": 128}, "32000 pieces.*below 31936"),
    ],
)
def test_a_setting_that_upstream_obeys_and_this_does_not_is_a_doubt(
    name: str, settings: dict[str, object], words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    edit_json(directory / name, lambda raw: raw.update(settings))
    (doubt,) = open_checkpoint(directory).reading.doubts
    assert re.search(words, doubt)


def test_generation_settings_that_do_nothing_are_no_doubt(golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    idle = {"num_beams": 1, "repetition_penalty": 1.0, "do_sample": True, "temperature": 0.7, "suppress_tokens": []}
    edit_json(directory / "generation_config.json", lambda raw: raw.update(idle))
    assert open_checkpoint(directory).reading.doubts == ()
