"""Folders as users' bug reports describe them: the right numbers, or one line that says what is wrong with the folder.

Each is rebuilt on the golden checkpoint. Where numbers count, transformers, peft or OpenVLA's own formula has the right
ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_vla.checkpoint import open_checkpoint
from edge_vla.errors import CheckpointError, UsageError
from tests.bad_input.damage import edit_json, edit_tensors, link, lora, put, write_adapter
from tests.checkpoint import upstream

CONFIG, STATISTICS, SINGLE = "config.json", "dataset_statistics.json", "model.safetensors"
BIG, SMALL = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
QUERY = "language_model.model.layers.0.self_attn.q_proj"
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
ROTARY = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
RUN = "openvla-7b+mine+b16+lr-0.0005+lora-r32+dropout-0.0"
BASE = "openvla/openvla-7b"

Tensors = dict[str, Tensor]


def whole(directory: Path) -> Tensors:
    return {**load_file(directory / BIG), **load_file(directory / SMALL)}


def doubts(source: Path, *adapters: Path) -> tuple[str, ...]:
    """But for the one that an adapter without statistics gives."""
    found = open_checkpoint(source, adapters).reading.doubts
    return tuple(doubt for doubt in found if "the base's data sets apply" not in doubt)


def unmerged(tensors: Tensors) -> Tensors:
    """As `save_pretrained` of a peft model's base writes it."""
    weight = tensors.pop(f"{QUERY}.weight")
    factors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora(QUERY, 128, 128).items()}
    return {**tensors, f"{QUERY}.base_layer.weight": weight, **factors}


def wrapped(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def compiled(tensors: Tensors) -> Tensors:
    return {name.replace("language_model.", "language_model._orig_mod."): one for name, one in tensors.items()}


def timms(tensors: Tensors) -> Tensors:
    return {name.replace(".scale_factor", ".gamma"): tensor for name, tensor in tensors.items()}


def emptied(tensors: Tensors) -> Tensors:
    return {**tensors, EMBEDDINGS: torch.zeros(0, dtype=torch.bfloat16)}


def resized(tensors: Tensors) -> Tensors:
    """As `resize_token_embeddings(32128)` leaves the two tables."""
    return {**tensors, **{name: torch.cat([tensors[name], tensors[name][:64]]) for name in (EMBEDDINGS, HEAD)}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unmerged, r"adapters are in it that were not merged.*merge_and_unload"),
        (wrapped, r"wrapped model \(module\.\)"),
        (compiled, r"wrapped model \(_orig_mod\.\)"),
        (timms, r"timm's own names.*convert_openvla_weights_to_hf"),
        (emptied, r"without its numbers.*ZeRO-3"),
        (resized, r"resized to 32128 rows; set vocab_size"),
    ],
)
def test_what_was_done_before_saving_is_named(
    change: Callable[[Tensors], Tensors], words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    save_file(change(whole(directory)), directory / SINGLE)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(directory)


def test_rows_beyond_the_tokenizer_are_padding_where_config_says_so(golden_checkpoint: Path, tmp_path: Path) -> None:
    """OpenVLA counts action tokens down from vocab_size less pad_to_multiple_of."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    save_file(resized(whole(directory)), directory / SINGLE)
    edit_json(directory / CONFIG, lambda raw: raw["text_config"].update(vocab_size=32128))
    (doubt,) = doubts(directory)
    assert "32000 pieces" in doubt
    assert "below 32064" in doubt
    edit_json(directory / CONFIG, lambda raw: raw.update(pad_to_multiple_of=128))
    assert doubts(directory) == ()
    assert open_checkpoint(directory).config.spec.action == open_checkpoint(golden_checkpoint).config.spec.action


def float64(directory: Path) -> None:
    save_file({name: tensor.double() for name, tensor in whole(directory).items()}, directory / SINGLE)


def rotary_that_no_index_names(directory: Path) -> None:
    edit_tensors(directory / BIG, lambda tensors: tensors.update({ROTARY: torch.ones(16)}))


def rope_scaled_by_nothing(directory: Path) -> None:
    """As some versions of transformers save a Llama that is not scaled."""
    edit_json(directory / CONFIG, lambda raw: raw["text_config"].update(rope_scaling={"rope_type": "default"}))


def files_of_macos(directory: Path) -> None:
    for name in (CONFIG, BIG, "modeling_prismatic.py", "action_head--5000_checkpoint.pt"):
        put(directory / f"._{name}", b"\x00\x05\x16\x07 NUM_ACTIONS_CHUNK")


def folders_with_files_names(directory: Path) -> None:
    (directory / "folder.py").mkdir()
    (directory / "action_head--5000_checkpoint.pt").mkdir()


@pytest.mark.parametrize(
    "change",
    [float64, rotary_that_no_index_names, rope_scaled_by_nothing, files_of_macos, folders_with_files_names],
)
def test_these_are_read_as_transformers_reads_them(
    change: Callable[[Path], object], golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "mein Ordner — 模型 [v2]")
    change(directory)
    ours, theirs = open_checkpoint(directory), upstream.tensors(directory)
    assert ours.tensors.names() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours.tensors.load(name).float(), expected), name
    assert ours.reading.doubts == ()


@pytest.mark.parametrize(
    "name",
    [
        *(STATISTICS, CONFIG, "preprocessor_config.json", "processor_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "quantize_config.json"),
    ],
)
def test_a_link_to_nothing_is_no_absent_file(name: str, golden_checkpoint: Path, tmp_path: Path) -> None:
    """A Hub cache copied without its blobs: the base's scale, or a default, would come in the file's place."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to("../../blobs/gone")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to nothing.*cp -rL"):
        open_checkpoint(directory)


def test_nor_beside_an_adapter(golden_checkpoint: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY, 128, 128))
    (adapter / STATISTICS).symlink_to("../blobs/gone")
    with pytest.raises(CheckpointError, match="link to nothing"):
        open_checkpoint(golden_checkpoint, [adapter])


def test_an_adapter_over_its_own_merged_run_is_a_doubt(golden_checkpoint: Path, tmp_path: Path) -> None:
    """finetune.py saves both, and scripts load one into the other (openvla #54): the update would count twice."""
    merged = link(golden_checkpoint, tmp_path / "merged")
    edit_json(merged / CONFIG, lambda raw: raw.update(_name_or_path=BASE))
    named = {"base_model_name_or_path": BASE}
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY, 128, 128), named)
    (doubt,) = doubts(merged, adapter)
    assert "merged there already" in doubt
    assert f"give {BASE!r} as SRC" in doubt
    stacked = write_adapter(tmp_path / "second", lora(QUERY, 128, 128), {"base_model_name_or_path": str(merged)})
    assert doubts(merged, stacked) == ()
    (merged / STATISTICS).unlink()  # the base itself, saved again
    assert doubts(merged, adapter) == ()


@pytest.mark.parametrize("run", [RUN, f"{RUN}--5000_chkpt"])
def test_so_it_is_by_the_runs_name(run: str, golden_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "adapter-tmp").mkdir()
    merged = link(golden_checkpoint, tmp_path / "runs" / run)
    (doubt,) = doubts(merged, write_adapter(tmp_path / "adapter-tmp" / RUN, lora(QUERY, 128, 128)))
    assert "merged there already" in doubt


def test_an_adapter_given_twice_is_refused(golden_checkpoint: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY, 128, 128))
    (tmp_path / "alias").symlink_to(adapter)
    with pytest.raises(UsageError, match=r"alias is given twice.*once"):
        open_checkpoint(golden_checkpoint, [adapter, tmp_path / "alias"])


def zero(factors: Tensors) -> Tensors:
    return {name: tensor.zero_() if "lora_B" in name else tensor for name, tensor in factors.items()}


@pytest.mark.parametrize(
    ("factors", "config", "words"),
    [
        (zero(lora(QUERY, 128, 128)), {}, ["changes nothing, because every lora_B is zero"]),
        (
            lora(QUERY, 128, 128),
            {"target_modules": ["q_proj"]},
            ["no factors for 2 modules.*layers.1.self_attn.q_proj"],
        ),
        (lora(QUERY, 128, 128), {"target_modules": ["q_proj"], "layers_to_transform": [0]}, []),
        (lora(QUERY, 128, 128), {"modules_to_save": ["projector"]}, ["names projector in modules_to_save.*none of it"]),
    ],
)
def test_what_an_adapter_was_to_have_and_lacks_is_said(
    factors: Tensors, config: dict[str, Any], words: list[str], golden_checkpoint: Path, tmp_path: Path
) -> None:
    """As DeepSpeed, FSDP and older versions of peft save them (peft #1402, #2450); peft itself merges what is there."""
    adapter = write_adapter(tmp_path / "adapter", factors, config)
    found = doubts(golden_checkpoint, adapter)
    assert len(found) == len(words)
    assert all(re.search(one, doubt) for one, doubt in zip(words, found, strict=True))


def test_a_projector_that_was_trained_whole_replaces_the_bases(golden_checkpoint: Path, tmp_path: Path) -> None:
    trained = {name: one + 1 for name, one in whole(golden_checkpoint).items() if name.startswith("projector.")}
    saved = {"modules_to_save": ["projector"]}
    adapter = write_adapter(tmp_path / "adapter", {**trained, **lora(QUERY, 128, 128)}, saved)
    assert doubts(golden_checkpoint, adapter) == ()
    merged = open_checkpoint(golden_checkpoint, [adapter]).tensors
    assert all(torch.equal(merged.load(name), expected) for name, expected in trained.items())


def sharded(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model-00001-of-00002.safetensors")


def named(adapter: Path) -> None:
    """As peft saves an adapter that is not called "default": in a folder of its name."""
    (adapter / "grasp").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).rename(adapter / "grasp" / name)


def whole_model(adapter: Path) -> None:
    (adapter / "adapter_config.json").rename(adapter / CONFIG)


def ungathered(adapter: Path) -> None:
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: tensors.update({name: torch.zeros(0) for name in tensors}),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (sharded, r"whole: adapter_model-00001-of-00002.safetensors is a part"),
        (named, r"expected a peft adapter there; give .*grasp"),
        (whole_model, r"this is a whole checkpoint: give it as SRC"),
        (ungathered, r"ZeRO-3\? gather the weights"),
    ],
)
def test_an_adapters_folder_says_what_it_is(
    change: Callable[[Path], object], words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY, 128, 128))
    change(adapter)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(golden_checkpoint, [adapter])


def test_a_run_that_was_trained_on_crops_says_so(golden_checkpoint: Path, tmp_path: Path) -> None:
    (doubt,) = doubts(link(golden_checkpoint, tmp_path / f"{RUN}--image_aug"))
    assert "center_crop" in doubt
    (doubt,) = doubts(golden_checkpoint, write_adapter(tmp_path / "a--image_aug", lora(QUERY, 128, 128)))
    assert "center_crop" in doubt


def statistics_of(directory: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((directory / STATISTICS).read_text(encoding="utf-8"))
    return raw


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sets: sets["bridge_orig"], r"one data set without its name"),
        (lambda sets: {"norm_stats": sets}, r"inside 'norm_stats'"),
        (lambda sets: {"mine": {"action": {"min": [0] * 7, "max": [1] * 7}}}, r"'mine'.*q01"),
    ],
    ids=["as training caches it", "one level too deep", "minimum and maximum alone"],
)
def test_statistics_that_lie_elsewhere_are_named(
    change: Callable[[dict[str, Any]], object], words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    put(directory / STATISTICS, json.dumps(change(statistics_of(directory))))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(directory)


def test_percentiles_in_each_others_place_are_a_doubt(golden_checkpoint: Path, tmp_path: Path) -> None:
    """OpenVLA un-normalises backwards with them, and so does this."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    action = statistics_of(directory)["bridge_orig"]["action"]
    turned = {**action, "q01": action["q99"], "q99": action["q01"]}
    put(directory / STATISTICS, json.dumps({"mine": {"action": turned}}))
    (doubt,) = doubts(directory)
    assert "q01 above q99 in dimension 0, 1, 2, 3, 4, 5:" in doubt
    normalised = np.linspace(-1, 1, 7)
    ours = open_checkpoint(directory).config.statistics["mine"].unnormalise(normalised)
    assert np.allclose(ours, upstream.unnormalised(normalised, turned), atol=1e-12)


def test_fourteen_dimensions_without_a_mask(golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    action = {"q01": [-0.5] * 14, "q99": [2.0] * 14}
    put(directory / STATISTICS, json.dumps({"two arms": {"action": action}}))
    checkpoint, normalised = open_checkpoint(directory), np.linspace(-1, 1, 14)
    ours = checkpoint.config.statistics["two arms"].unnormalise(normalised)
    assert np.allclose(ours, upstream.unnormalised(normalised, action), atol=1e-12)
    assert checkpoint.reading.doubts == ()
