"""What a calibrated export cannot do is said before anything is written, in one line."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import edge_vla.export.preflight
from edge_vla.checkpoint.random import RandomTensors
from edge_vla.data import read_frames
from edge_vla.export import Recipe, export
from tests.bad_input.damage import command, nothing_left
from tests.export.crash import tiny_frames

TINY = "random:openvla-tiny"

WRONG: list[tuple[tuple[str, ...], int, tuple[str, ...]]] = [
    (("--method", "hqq"), 2, ("--method hqq", "rtn", "gptq", "awq", "smoothquant")),
    (("--method", "awq"), 2, ("awq needs frames", "--frames")),
    (("--method", "smoothquant", "--bits", "8"), 2, ("smoothquant needs frames", "--frames")),
    (("--method", "smoothquant", "--frames", "frames"), 2, ("8-bit weights", "--bits 8")),
    (("--method", "smoothquant", "--bits", "8", "--frames", "frames", "--activations", "16"), 2, ("leave out", "rtn")),
    (("--method", "smoothquant", "--bits", "8", "--frames", "frames", "--alpha", "1.5"), 2, ("alpha 1.5", "0 to 1")),
    (("--method", "awq", "--frames", "frames", "--alpha", "-0.1"), 2, ("alpha -0.1", "0 to 1")),
    (("--method", "awq", "--frames", "frames", "--alpha", "nan"), 2, ("alpha nan", "0 to 1")),
    (("--method", "awq", "--bits", "8", "--frames", "frames"), 2, ("4 bits and fewer", "smoothquant")),
    (("--method", "gptq", "--frames", "frames", "--alpha", "0.5"), 2, ("alpha", "gptq has none")),
    (("--method", "awq", "--frames", "few"), 2, ("5 frames", "at least 8")),
    (("--method", "smoothquant", "--bits", "8", "--frames", "few"), 2, ("5 frames", "at least 8")),
    (("--method", "awq", "--frames", "frames", "--bpw", "3"), 2, ("KL costs", "--method gptq")),
    (("--activations", "8"), 2, ("8-bit activations", "--bits 8")),
    (("--bits", "8", "--activations", "4"), 2, ("activations 4", "16 or 8")),
    (("--bits", "8", "--asymmetric"), 2, ("--asymmetric", "--bits 4")),
    (("--method", "gptq", "--frames", "frames", "--asymmetric", "--bpw", "3"), 2, ("zero points", "no budget")),
    (("--method", "gptq"), 2, ("gptq needs frames", "--frames")),
    (("--method", "gptq", "--frames", "frames", "--bpw", "nan"), 2, ("nan bits per weight", "at most 16")),
    (("--method", "gptq", "--frames", "frames", "--bpw", "inf"), 2, ("inf bits per weight", "at most 16")),
    (("--method", "gptq", "--frames", "frames", "--device", "tpu"), 2, ("device 'tpu'", "cuda")),
    (("--method", "gptq", "--frames", "frames", "--bits", "16"), 2, ("--method gptq", "16 bits", "leave it out")),
    (("--device", "cuda"), 2, ("--device cuda", "--method gptq")),
    (("--bpw", "3.5"), 2, ("KL costs", "--method gptq")),
    (("--method", "gptq", "--frames", "frames", "--bpw", "1"), 2, ("--bpw 1", "floor", "give more")),
    (("--method", "gptq", "--frames", "frames", "--budget", "1KB"), 2, ("--budget", "floor", "give more")),
    (("--method", "gptq", "--frames", "frames", "--budget", "some"), 2, ("--budget some", "4.2GB")),
    (("--method", "gptq", "--frames", "frames", "--budget", "-3GB"), 2, ("--budget -3GB", "4.2GB")),
    (("--method", "gptq", "--frames", "frames", "--bpw", "4", "--budget", "1GB"), 2, ("two ways", "give one")),
    (("--method", "gptq", "--frames", "frames", "--calibration-frames", "3"), 2, ("at least 8",)),
    (("--method", "gptq", "--frames", "frames", "--calibration-frames", "0"), 2, ("at least 1",)),
    (("--method", "gptq", "--frames", "frames", "--group", "48"), 2, ("--group 48", "does not divide")),
    (("--method", "gptq", "--frames", "few"), 2, ("5 frames", "at least 8")),
    (("--method", "gptq", "--frames", "nowhere"), 4, ("frames.jsonl is missing",)),
    (("--method", "gptq", "--frames", "actionless"), 4, ("no recorded action", "--method rtn")),
    (("--method", "gptq", "--frames", "short"), 4, ("expected 7 finite numbers",)),
    (("--method", "gptq", "--frames", "nan"), 4, ("expected 7 finite numbers",)),
    (("--method", "gptq", "--frames", "signed"), 4, ("gripper looks like -1 and 1", "convert them in frames.jsonl")),
    (("--method", "gptq", "--frames", "wordless"), 4, ("line 1", "instruction")),
    (("--method", "gptq", "--frames", "twice"), 4, ("line 17", "image and instruction", "line 3", "02.png")),
    (("--method", "gptq", "--frames", "stuck"), 4, ("line 2", "episode and step", "line 1")),
    (("--method", "gptq", "--frames", "noimage"), 4, ("12.png", "not an image")),
    (("--method", "gptq", "--frames", "circle"), 4, ("12.png", "cannot be read", "symbolic links")),
]


Rows = list[dict[str, Any]]

SPOILED: dict[str, Callable[[Rows], Rows]] = {
    "few": lambda rows: rows[:5],
    "actionless": lambda rows: [{key: row[key] for key in row if key != "action"} for row in rows],
    "short": lambda rows: [{**row, "action": row["action"][:6]} for row in rows],
    "nan": lambda rows: [{**row, "action": [math.nan, *row["action"][1:]]} for row in rows],
    "signed": lambda rows: [{**row, "action": [*row["action"][:6], (-1, 1)[n % 2]]} for n, row in enumerate(rows)],
    "wordless": lambda rows: [{key: row[key] for key in row if key != "instruction"} for row in rows],
    "twice": lambda rows: [*rows, rows[2]],
    "stuck": lambda rows: [{**row, "step": 0} for row in rows],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with folders of frames, sound and spoiled."""
    monkeypatch.chdir(tmp_path)
    for name in ("frames", *SPOILED, "noimage", "circle"):
        tiny_frames(tmp_path / name)
    lines = (tmp_path / "frames" / "frames.jsonl").read_text(encoding="utf-8").splitlines()
    for name, spoil in SPOILED.items():
        rows = spoil([json.loads(line) for line in lines])
        (tmp_path / name / "frames.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "noimage" / "12.png").write_bytes(b"no image")
    looped = tmp_path / "circle" / "12.png"
    looped.unlink()
    looped.symlink_to(looped)
    return tmp_path


@pytest.mark.parametrize(("options", "code", "words"), WRONG, ids=[" ".join(options) for options, *_ in WRONG])
def test_refused_before_anything_is_written(
    options: tuple[str, ...], code: int, words: tuple[str, ...], place: Path, capsys: Any
) -> None:
    with nothing_left(place / "out"):
        command(capsys, "export", TINY, "--out", "out", *options).refused_with(code, words)


def test_too_little_memory_is_known_first(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(edge_vla.export.preflight, "available_bytes", lambda: 1000)
    with nothing_left(place / "out"):
        ended = command(capsys, "export", TINY, "--out", "out", "--method", "gptq", "--frames", "frames")
    ended.refused_with(5, ["running the exported policy needs", "GiB", "fewer --bits"])
    monkeypatch.setattr(edge_vla.export.preflight, "available_bytes", lambda: 700_000)  # enough for the artifact
    with nothing_left(place / "out"):
        ended = command(capsys, "export", TINY, "--out", "out", "--method", "gptq", "--frames", "frames")
    ended.refused_with(5, ["calibrating needs", "GiB", "fewer --calibration-frames"])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_non_finite_activations_end_it(method: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import torch

    import edge_vla.calibration.sequences as sequences

    real = sequences._embed_images

    def spoiled(*arguments: Any) -> Any:
        return torch.full_like(real(*arguments), torch.inf)

    monkeypatch.setattr(sequences, "_embed_images", spoiled)
    with nothing_left(place / "out"):
        ended = command(capsys, "export", TINY, "--out", "out", "--method", method, "--frames", "frames")
    ended.refused_with(6, ["non-finite", "verify the checkpoint"], lines=None)


def test_dead_channels_are_logged_and_rounded_to_nearest(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_norm(monkeypatch, slice(3, 5))
    with caplog.at_level(logging.WARNING, logger="edge_vla"):
        made = export(TINY, place / "out", Recipe(method="gptq"), frames=read_frames(place / "frames"))
    assert "layer 1, self_attn.q_proj: 2 of 64 inputs are never active, rounded to nearest" in caplog.text
    made.verify()


def test_a_layer_that_reads_nothing_ends_it(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    spoil_norm(monkeypatch, slice(None))
    with nothing_left(place / "out"):
        ended = command(capsys, "export", TINY, "--out", "out", "--method", "gptq", "--frames", "frames")
    ended.refused_with(6, ["layer 1, self_attn.q_proj", "no input is ever active"], lines=None)


def spoil_norm(monkeypatch: pytest.MonkeyPatch, channels: slice) -> None:
    """The second layer's attention sees zeros there."""
    load = RandomTensors.load

    def spoiled(self: RandomTensors, name: str) -> Tensor:
        tensor = load(self, name)
        if name.endswith("layers.1.input_layernorm.weight"):
            tensor[channels] = 0
        return tensor

    monkeypatch.setattr(RandomTensors, "load", spoiled)
