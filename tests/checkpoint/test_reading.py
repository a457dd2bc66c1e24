"""The record of what was read: printed by inspect and before an export, warned of by the library, obeyed by options."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.kinds import Kind, recognise
from edge_vla.errors import CheckpointError, EdgeVLAWarning, UsageError
from edge_vla.export import Recipe, export
from edge_vla.export.huggingface import export_checkpoint
from tests.bad_input.damage import command, edit_json, link, lora, put, write_adapter
from tests.checkpoint.upstream import unnormalised
from tests.golden.openvla_tiny import cases, prompts

CONFIG, STATISTICS, SETTINGS = "config.json", "dataset_statistics.json", "quantize_config.json"
QUERY = "language_model.model.layers.0.self_attn.q_proj"
MINE = {"q01": [-1.0] * 7, "q99": [3.0] * 7, "mask": [1] * 6 + [0]}


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    """A file with one sound data set, a broken one and a stray count."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mine": {"action": MINE}, "torn": {"action": {}}, "num_transitions": 7}))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(cases()[0].image).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_tokens_are_upstreams_and_the_action_is_in_the_given_units(
    golden_checkpoint: Path, statistics: Path
) -> None:
    """OpenVLA's recorded tokens, un-normalised by its own formula with the statistics that were named."""
    case = cases()[0]
    with pytest.warns(EdgeVLAWarning) as told:
        policy = edge_vla.load(golden_checkpoint, dtype="fp32", statistics=statistics)
    assert [str(one.message).rpartition(":")[2] for one in told] == [" left out", " ignored"]
    action = policy.act(case.image, case.instruction, "mine")
    assert action.tokens == case.token_ids
    assert np.allclose(action.values, unnormalised(case.normalized, MINE), atol=1e-12)
    with pytest.raises(CheckpointError, match=r"data set 'torn'.*q01"):
        policy.act(case.image, case.instruction, "torn")


def test_a_prompt_that_is_named_is_the_one_upstream_tokenised(golden_checkpoint: Path) -> None:
    recorded = next(one for one in prompts() if one.text.startswith("A chat"))
    instruction = recorded.text.partition("robot take to ")[2].partition("?")[0]
    policy = edge_vla.load(golden_checkpoint, prompt="v01")
    assert policy.prompter.encode(policy.prompter.text(instruction)) == recorded.ids


def test_export_says_what_it_read_before_it_starts(
    golden_checkpoint: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = link(golden_checkpoint, tmp_path / "source"), tmp_path / "out"
    torch.save({}, source / "optimizer.pt")
    ended = command(capsys, "export", source, "--out", out, "--bits", 8, "--prompt", "v01", "--statistics", statistics)
    assert ended.code == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("OpenVLA (model_type 'openvla'")
    assert "ignored optimizer.pt: the training run's state" in lines
    assert "prompt v01: --prompt says so" in lines
    assert f"statistics --statistics {statistics}" in lines
    assert sum(line.startswith("warning: ") for line in lines) == 2  # the broken set and the count
    manifest = Artifact(out).manifest
    assert (manifest.config.prompt.value, [*manifest.config.statistics]) == ("v01", ["mine"])
    # The artifact has them for good.
    with pytest.raises(UsageError, match="settled when it was exported"):
        edge_vla.load(out, prompt="v01")
    ended = command(capsys, "inspect", out, "--statistics", statistics)
    ended.refused_with(UsageError.exit_code, ("is an artifact",))


def test_run_and_inspect_take_the_same_options(
    golden_checkpoint: Path, statistics: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--prompt", "v01", "--statistics", statistics]
    ended = command(
        capsys,
        "run",
        golden_checkpoint,
        "--image",
        picture,
        "--instruction",
        "go",
        "--unnorm-key",
        "mine",
        "--json",
        *given,
    )
    assert json.loads(ended.stdout)["unnorm_key"] == "mine"
    seen = json.loads(command(capsys, "inspect", golden_checkpoint, "--json", *given).stdout)
    assert seen["facts"]["prompt"] == "v01"
    assert seen["facts"]["data sets (unnorm_key)"] == ["mine"]
    assert len(seen["reading"]["doubts"]) == 2
    assert {"file": STATISTICS, "why": f"--statistics {statistics} comes in its place"} in seen["reading"]["ignored"]


def test_another_format_says_the_same_when_it_is_read_back(
    golden_checkpoint: Path, statistics: Path, tmp_path: Path
) -> None:
    with pytest.warns(EdgeVLAWarning):
        out = export_checkpoint(
            golden_checkpoint, tmp_path / "out", "gptq", Recipe(bits=8), prompt="v01", statistics=statistics
        )
    back = open_checkpoint(out)
    assert (back.config.prompt.value, [*back.config.statistics]) == ("v01", ["mine"])
    assert back.reading.doubts == ()


def test_prompt_and_statistics_decide_whether_an_export_resumes(golden_checkpoint: Path, statistics: Path) -> None:
    settings = {
        open_checkpoint(golden_checkpoint, prompt=prompt, statistics=given).settings_sha256()
        for prompt in ("openvla", "v01")
        for given in (None, statistics)
    }
    assert len(settings) == 4


def test_inspect_merges_and_shows_the_adapters_doubts(
    golden_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora(QUERY, 128, 128), {"bias": "all"})
    reading = json.loads(command(capsys, "inspect", golden_checkpoint, "--adapter", adapter, "--json").stdout)[
        "reading"
    ]
    assert reading["merged"] == [str(adapter)]
    assert [word for doubt in reading["doubts"] for word in ("biases", "base's data sets") if word in doubt] == [
        "biases",
        "base's data sets",
    ]


def test_an_adapter_of_an_oft_run_is_not_merged_into_a_plain_openvla(golden_checkpoint: Path, tmp_path: Path) -> None:
    """openvla-oft's finetune.py without merging: lora_adapter/, its parts and the statistics, and no config.json."""
    run = tmp_path / "run"
    run.mkdir()
    adapter = write_adapter(run / "lora_adapter", lora(QUERY, 128, 128))
    open_checkpoint(golden_checkpoint, [adapter])
    torch.save({}, run / "action_head--latest_checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"OpenVLA-OFT policy.*action_head--latest"):
        open_checkpoint(golden_checkpoint, [adapter])
    assert recognise(run).kind is Kind.OFT


def test_settings_of_a_quantiser_without_its_tensors_are_left_over(golden_checkpoint: Path, tmp_path: Path) -> None:
    """transformers reads quantization_config of config.json alone; there, it would look for quantised tensors."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    put(directory / SETTINGS, json.dumps({"bits": 4, "group_size": 64, "desc_act": False, "sym": True}))
    checkpoint, plain = open_checkpoint(directory), open_checkpoint(golden_checkpoint)
    assert torch.equal(checkpoint.tensors.load(f"{QUERY}.weight"), plain.tensors.load(f"{QUERY}.weight"))
    assert "no tensor is quantised: ignored" in checkpoint.reading.doubts[0]
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    edit_json(directory / CONFIG, lambda raw: raw.update(quantization_config=quantised))
    assert "says gptq (quantization_config), but no tensor is" in open_checkpoint(directory).reading.doubts[0]


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as lists a repository's files; `asked` are the paths that were."""

    asked: list[str]
    names = (CONFIG, "model.safetensors", "action_head--150000_checkpoint.pt")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        siblings = [{"rfilename": name} for name in self.names]
        body = json.dumps({"id": "moojink/oft", "sha": "0" * 40, "siblings": siblings}).encode()
        found = self.path.startswith("/api/models/moojink/oft")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    import huggingface_hub.constants

    class Asked(Hub):
        asked: list[str] = []  # noqa: RUF012  (its own, for each test)

    handler = Asked
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_policy_on_the_hub_is_refused_before_its_weights_are_fetched(hub: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"moojink/oft is an OpenVLA-OFT policy \(action_head--1"):
        open_checkpoint("moojink/oft")
    assert [path for path in hub if path.startswith("/api/models/")]
    assert not [path for path in hub if "/resolve/" in path], "no file was asked for"


def test_what_was_done_before_is_said(golden_checkpoint: Path, tmp_path: Path) -> None:
    """finetune.py merges into the base's config, which then names the base; a quantiser's format is named too."""
    directory = link(golden_checkpoint, tmp_path / "folder")
    edit_json(directory / CONFIG, lambda raw: raw.update(_name_or_path="openvla/openvla-7b"))
    assert "fine-tuned or merged from 'openvla/openvla-7b'" in open_checkpoint(directory).reading.sign
    out = export_checkpoint(golden_checkpoint, tmp_path / "out", "gptq", Recipe(bits=8))
    assert "21 matrices stored as gptq" in open_checkpoint(out).reading.sign


def test_statistics_may_be_those_of_a_config(golden_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "config.json"
    other.write_text(json.dumps({"model_type": "openvla", "norm_stats": {"theirs": {"action": MINE}}}))
    assert [*open_checkpoint(golden_checkpoint, statistics=other).config.statistics] == ["theirs"]


def test_files_that_nothing_needs_may_be_broken(golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    for name in ("generation_config.json", "processor_config.json", "trainer_state.json"):
        put(directory / name, "{ not JSON")
    edit_json(directory / CONFIG, lambda raw: raw.update(norm_stats={"unread": 5}))  # its file replaces it
    assert open_checkpoint(directory).reading.doubts == ()


def test_the_library_warns_of_each_doubt_once(golden_checkpoint: Path, tmp_path: Path) -> None:
    directory = link(golden_checkpoint, tmp_path / "folder")
    edit_json(directory / "generation_config.json", lambda raw: raw.update(num_beams=4))
    with pytest.warns(EdgeVLAWarning, match="num_beams") as told:
        edge_vla.load(directory)
    assert len(told) == 1
    with pytest.warns(EdgeVLAWarning, match="num_beams") as told:
        export(directory, tmp_path / "out", Recipe(bits=8))
    assert len(told) == 1
