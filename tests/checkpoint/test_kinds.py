"""Folders with OpenVLA's config and tensors that hold another policy: named, and refused or doubted.

The files are those that each project's own scripts write (openvla-oft's finetune.py and openvla_utils.py, prismatic's
train.py, OpenVLA's finetune.py). The marks in code are written anew here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.kinds import Kind, recognise
from edge_vla.errors import CheckpointError, EdgeVLAError, UsageError
from edge_vla.inspection import describe
from tests.bad_input.damage import command, edit_json, link, lora, nothing_left, put, write_adapter

CONFIG, STATISTICS = "config.json", "dataset_statistics.json"
QUERY = "language_model.model.layers.0.self_attn.q_proj"
AUTO_MAP = {
    "AutoConfig": "configuration_prismatic.OpenVLAConfig",
    "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
}
OFT_CODE = "from prismatic.vla.constants import NUM_ACTIONS_CHUNK\n"
ECOT_CODE = "class Policy:\n    def predict_action(self):\n        return actions, generated_ids\n"


@dataclass(frozen=True)
class Neighbour:
    """`change` makes a folder of this `kind`; `words` are in the refusal."""

    name: str
    change: Callable[[Path], object]
    kind: Kind
    words: tuple[str, ...]


def part(name: str) -> Callable[[Path], object]:
    return lambda directory: torch.save({"module.fc1.weight": torch.ones(2)}, directory / name)


def setting(**values: Any) -> Callable[[Path], object]:
    return lambda directory: edit_json(directory / CONFIG, lambda raw: raw.update(values))


def code(text: str, auto_map: dict[str, str] | None = None) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        put(directory / "modeling_prismatic.py", text)
        setting(auto_map=auto_map or AUTO_MAP)(directory)

    return change


def native(base: str, *, checkpoints: bool = True) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        shutil.rmtree(directory)
        (directory / "checkpoints").mkdir(parents=True)
        if checkpoints:
            torch.save({"model": {}}, directory / "checkpoints" / "step-000001-epoch-00-loss=1.pt")
        put(directory / CONFIG, json.dumps({"run_id": "x", "vla": {"type": "y", "base_vlm": base}}))
        put(directory / STATISTICS, "{}")

    return change


def qwen(directory: Path) -> None:
    edit_json(directory / CONFIG, lambda raw: raw["text_config"].update(model_type="qwen2"))


OFT = ("OpenVLA-OFT", "openvla-oft")
NEIGHBOURS = [
    Neighbour("L1 head", part("action_head--150000_checkpoint.pt"), Kind.OFT, ("action_head--", *OFT)),
    Neighbour("latest head", part("action_head--latest_checkpoint.pt"), Kind.OFT, ("action_head--", *OFT)),
    Neighbour("proprioception", part("proprio_projector--5_checkpoint.pt"), Kind.OFT, ("proprio_projector--", *OFT)),
    Neighbour("diffusion", part("noisy_action_projector--5_checkpoint.pt"), Kind.OFT, ("noisy_action", *OFT)),
    Neighbour("FiLM", part("vision_backbone--5_checkpoint.pt"), Kind.OFT, ("vision_backbone--", *OFT)),
    Neighbour("chunks in config", setting(num_actions_chunk=8), Kind.OFT, ("num_actions_chunk is 8", *OFT)),
    Neighbour("two images", setting(num_images_in_input=2), Kind.OFT, ("num_images_in_input is 2", *OFT)),
    Neighbour("FiLM in config", setting(use_film=True), Kind.OFT, ("use_film is True", *OFT)),
    Neighbour("OFT's code", code(OFT_CODE), Kind.OFT, ("modeling_prismatic.py decodes chunks", *OFT)),
    Neighbour(
        "OFT's code on the Hub",
        setting(auto_map={"AutoModelForVision2Seq": "moojink/openvla-7b-oft-x--modeling_prismatic.OpenVLA"}),
        Kind.OFT,
        ("auto_map points to moojink/openvla-7b-oft-x", *OFT),
    ),
    Neighbour(
        "another head",
        part("action_decoder-5.pt"),
        Kind.OTHER_HEAD,
        ("action_decoder-5.pt", "its own project's code", "move the file away"),
    ),
    Neighbour("flow head", part("flow_head.safetensors"), Kind.OTHER_HEAD, ("flow_head.safetensors",)),
    Neighbour("ECoT's code", code(ECOT_CODE), Kind.ECOT, ("ECoT", "reasoning", "embodied-CoT")),
    Neighbour("native", native("prism-dinosiglip-224px+7b"), Kind.NATIVE, ("convert_openvla_weights_to_hf.py",)),
    Neighbour("native without weights", native("siglip-224px+7b", checkpoints=False), Kind.NATIVE, ("native",)),
    Neighbour("MiniVLA", native("prism-qwen25-extra-dinosiglip-224px+0_5b"), Kind.MINIVLA, ("MiniVLA", "Qwen")),
    Neighbour("Qwen decoder", qwen, Kind.MINIVLA, ("MiniVLA", "Qwen")),
    Neighbour("Prismatic VLM", setting(model_type="prismatic"), Kind.VLM, ("VLM", "no actions")),
]


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda one: one.name)
def test_another_policy_is_refused_by_name(
    neighbour: Neighbour, golden_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    neighbour.change(directory)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert [word for word in neighbour.words if word not in str(caught.value)] == [], str(caught.value)
    with nothing_left(tmp_path / "out"):
        command(capsys, "export", directory, "--out", tmp_path / "out").refused_with(4, neighbour.words)
    # The doctor names it too, and ends as the others do.
    assert (reading := describe(str(directory)).reading) is not None
    assert (reading.kind, reading.refusal) == (neighbour.kind, str(caught.value))
    ended = command(capsys, "inspect", directory)
    assert ended.code == 4
    assert ended.stdout.startswith(neighbour.kind.value)
    assert json.loads(command(capsys, "inspect", "--json", directory).stdout)["reading"]["kind"] == neighbour.kind


@pytest.mark.parametrize(
    "change",
    [
        part("optimizer.pt"),
        setting(num_images_in_input=1, use_film=False, use_proprio=None, num_actions_chunk=1),
        code("class OpenVLAForActionPrediction: ...\n"),
        setting(auto_map={"AutoModelForVision2Seq": "openvla/openvla-7b--modeling_prismatic.OpenVLA"}),
        setting(_name_or_path="openvla/openvla-7b"),
    ],
)
def test_an_openvla_stays_one(change: Callable[[Path], object], golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    change(directory)
    reading = open_checkpoint(directory).reading
    assert (reading.kind, reading.doubts) == (Kind.OPENVLA, ())


def renamed(name: str, change: Callable[[Path], object] = lambda _: None) -> Callable[[Path], Path]:
    def made(directory: Path) -> Path:
        change(directory)
        return directory.rename(directory.parent / name)

    return made


def oft_adapter(directory: Path) -> None:
    write_adapter(directory / "lora_adapter", lora(QUERY, 128, 128))


def vicuna(**values: Any) -> Callable[[Path], object]:
    return setting(llm_backbone_id="vicuna-v15-7b", **values)


DOUBTFUL: list[tuple[Callable[[Path], Path], Kind, str]] = [
    (renamed("plain", oft_adapter), Kind.OPENVLA, "lora_adapter/ is what openvla-oft"),
    (renamed("my-v01"), Kind.OPENVLA, "--prompt v01"),
    (renamed("ft", vicuna(_name_or_path="/models/base")), Kind.V01, "--prompt openvla"),
    (renamed("ecot-bridge", vicuna()), Kind.ECOT, "ECoT policy"),
    (renamed("x", lambda d: put(d / "modeling_prismatic.py", OFT_CODE)), Kind.OPENVLA, "auto_map does not use it"),
    (renamed("y", lambda d: put(d / "adapter_config.json", "{}")), Kind.OPENVLA, "without an adapter's weights"),
]


@pytest.mark.parametrize(("make", "kind", "words"), DOUBTFUL, ids=[words for *_, words in DOUBTFUL])
def test_what_a_folder_cannot_tell_is_a_doubt(
    make: Callable[[Path], Path], kind: Kind, words: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    directory = make(link(golden_checkpoint, tmp_path / "folder"))
    reading = open_checkpoint(directory).reading
    (doubt,) = reading.doubts
    assert reading.kind is kind
    assert words in doubt


def test_a_discrete_oft_run_is_told_by_its_name_and_its_adapter(golden_checkpoint: Path, tmp_path: Path) -> None:
    """It has no head: only openvla-oft's layout and the run's name say that it decodes in parallel."""
    name = "openvla-7b+libero+b8+lr-0.0005+lora-r32+dropout-0.0--parallel_dec--8_acts_chunk--discrete_acts"
    directory = renamed(name, oft_adapter)(link(golden_checkpoint, tmp_path / "folder"))
    assert recognise(directory).kind is Kind.OFT
    with pytest.raises(CheckpointError, match="lora_adapter/ in a folder named"):
        open_checkpoint(directory)


def test_v01_without_a_name_is_no_doubt(golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = link(golden_checkpoint, tmp_path / "renamed")
    vicuna()(directory)
    checkpoint = open_checkpoint(directory)
    assert (checkpoint.reading.kind, checkpoint.reading.doubts) == (Kind.V01, ())
    assert checkpoint.reading.prompt.startswith("v01")


@pytest.mark.parametrize("inside", ["snapshots/0123", "openvla-7b+mine--5000_chkpt"])
def test_a_folder_around_a_checkpoint_names_it(inside: str, golden_checkpoint: Path, tmp_path: Path) -> None:
    around = tmp_path / "models--openvla--openvla-7b"
    (around / inside).parent.mkdir(parents=True)
    link(golden_checkpoint, around / inside)
    with pytest.raises(CheckpointError, match=f"give {around / inside}".replace("+", r"\+")):
        open_checkpoint(around)


def test_an_adapter_alone_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY, 128, 128), {"base_model_name_or_path": "openvla/x"})
    ended = command(capsys, "inspect", adapter)
    assert ended.code == UsageError.exit_code
    assert ended.stdout.startswith("a LoRA adapter")
    assert "'openvla/x'" in ended.stdout
    assert "has no dataset_statistics.json" in ended.stderr


def run_of(root: Path, run: str, statistics: Path, key: str) -> Path:
    """A run's folder with statistics of one data set called `key`."""
    raw = json.loads(statistics.read_text(encoding="utf-8"))
    (root / run).mkdir(parents=True)
    put(root / run / STATISTICS, json.dumps({key: raw["bridge_orig"]}))
    return root / run


RUN = "openvla-7b+mine+b16+lr-0.0005+lora-r32+dropout-0.0[a]"


@pytest.mark.parametrize("run", [RUN, f"{RUN}--5000_chkpt"])
def test_an_adapter_of_finetune_finds_the_statistics_of_its_run(
    run: str, golden_checkpoint: Path, tmp_path: Path
) -> None:
    """finetune.py saves the adapter in adapter-tmp/RUN and the statistics in runs/RUN, or runs/RUN--STEP_chkpt."""
    adapter = tmp_path / "adapter-tmp" / RUN
    adapter.parent.mkdir()
    write_adapter(adapter, lora(QUERY, 128, 128))
    statistics = golden_checkpoint / STATISTICS
    made = run_of(tmp_path / "runs", run, statistics, "mine")
    run_of(tmp_path / "runs", "openvla-7b+another", statistics, "another")
    checkpoint = open_checkpoint(golden_checkpoint, [adapter])
    assert list(checkpoint.config.statistics) == ["mine"]
    assert str(made / STATISTICS) in checkpoint.reading.statistics
    assert checkpoint.reading.doubts == ()
    assert STATISTICS in {use.name for use in checkpoint.reading.ignored}


def test_statistics_in_the_folder_around_an_adapter_are_its_own(golden_checkpoint: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, "run", golden_checkpoint / STATISTICS, "mine")
    adapter = write_adapter(run / "lora_adapter", lora(QUERY, 128, 128))
    assert list(open_checkpoint(golden_checkpoint, [adapter]).config.statistics) == ["mine"]


def test_statistics_that_are_ambiguous_or_nowhere_are_a_doubt(golden_checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter-tmp" / RUN
    adapter.parent.mkdir()
    write_adapter(adapter, lora(QUERY, 128, 128))
    alone = open_checkpoint(golden_checkpoint, [adapter])
    assert "the base's data sets apply" in alone.reading.doubts[0]
    first = run_of(tmp_path / "runs", RUN, golden_checkpoint / STATISTICS, "mine")
    run_of(tmp_path / "old-runs", RUN, golden_checkpoint / STATISTICS, "older")
    torn = open_checkpoint(golden_checkpoint, [adapter])
    assert "differ" in torn.reading.doubts[0]
    base = open_checkpoint(golden_checkpoint).config.statistics
    assert [*alone.config.statistics] == [*torn.config.statistics] == [*base]
    chosen = open_checkpoint(golden_checkpoint, [adapter], statistics=first / STATISTICS)
    assert [*chosen.config.statistics] == ["mine"]
    assert chosen.reading.doubts == ()


def test_a_folder_of_the_same_plain_name_is_no_run(golden_checkpoint: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "theirs", "adapter", golden_checkpoint / STATISTICS, "theirs")
    (tmp_path / "mine").mkdir()
    adapter = write_adapter(tmp_path / "mine" / "adapter", lora(QUERY, 128, 128))
    assert "theirs" not in open_checkpoint(golden_checkpoint, [adapter]).config.statistics


def test_prompt_and_statistics_can_be_said(golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = renamed("v01")(link(golden_checkpoint, tmp_path / "folder"))
    put(directory / STATISTICS, "not JSON")
    given = run_of(tmp_path, "run", golden_checkpoint / STATISTICS, "mine") / STATISTICS
    checkpoint = open_checkpoint(directory, prompt="v01", statistics=given)
    assert checkpoint.config.prompt.value == "v01"
    assert [*checkpoint.config.statistics] == ["mine"]
    assert checkpoint.reading.doubts == ()
    with pytest.raises(UsageError, match="--prompt v1: choose one of openvla, v01"):
        open_checkpoint(golden_checkpoint, prompt="v1")
    with pytest.raises(UsageError, match="--statistics nowhere: no such file"):
        open_checkpoint(golden_checkpoint, statistics="nowhere")
    with pytest.raises(EdgeVLAError, match="no action statistics"):
        open_checkpoint(golden_checkpoint, statistics=_empty(tmp_path / "empty.json"))


def _empty(path: Path) -> Path:
    path.write_text("{}", encoding="utf-8")
    return path
