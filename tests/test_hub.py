"""The Hub through the real huggingface_hub and a server on this machine: fetched, sent, refused by name, offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from edge_vla.artifact import Artifact
from tests.hub_stub import Hub, serving, use
from tests.test_cli import call


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as served:
        use(served, tmp_path / "cache", monkeypatch)
        yield served


def test_an_artifact_goes_there_and_back(
    hub: Hub, tiny_artifacts: Mapping[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = Artifact(tiny_artifacts[8])
    assert call("push", str(artifact.directory), "me/int8", "--private") == 0
    assert capsys.readouterr().out.startswith(f"{hub.address}/me/int8/commit/")
    assert set(hub.files["me/int8"]) >= {"manifest.json", *artifact.manifest.files}
    out = tmp_path / "there"
    assert call("pull", "me/int8", "--out", str(out)) == 0
    assert capsys.readouterr().out.strip() == f"ok {artifact.identity}"
    Artifact(out).verify()
    assert not (tmp_path / "there.partial").exists()
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(hub.files["me/int8"])
    assert call("pull", "me/int8", "--out", str(out)) == 2


def test_what_is_damaged_on_the_way_gets_no_name(
    hub: Hub, tiny_artifacts: Mapping[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("push", str(tiny_artifacts[8]), "me/int8") == 0
    head = bytearray(hub.files["me/int8"]["head.safetensors"])
    head[-1] ^= 1
    hub.files["me/int8"]["head.safetensors"] = bytes(head)
    assert call("pull", "me/int8", "--out", str(tmp_path / "there")) == 6
    assert "head.safetensors: sha256" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()


REFUSALS: Mapping[str, tuple[tuple[int, str], str]] = {
    "none": ((404, "RepoNotFound"), "no such repository, or a private one (404): check the name, or `hf auth login`"),
    "unauthorised": ((401, "RepoNotFound"), "private one (401)"),
    "gated": ((403, "GatedRepo"), "gated (403): accept its terms at https://huggingface.co/some/model"),
    "forbidden": ((403, ""), "no right to it (403)"),
    "down": ((503, ""), "the Hub answered 503: try again"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("command", ["inspect", "pull", "adapter"])
def test_a_refusal_keeps_its_meaning(
    name: str, command: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status["some/model"], said = REFUSALS[name]
    arguments = {
        "inspect": ("inspect", "some/model"),
        "pull": ("pull", "some/model", "--out", str(tmp_path / "out")),
        "adapter": ("inspect", "random:openvla-tiny", "--adapter", "some/model"),
    }[command]
    assert call(*arguments) == 4
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) <= 2, shown


def test_a_revision_that_is_not_there(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files["some/model"] = {"config.json": b"{}"}
    assert call("inspect", "some/model@v9") == 4
    assert "has no revision v9" in capsys.readouterr().err


def test_a_policy_that_is_no_artifact_is_refused_before_it_is_fetched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["some/model"] = {"config.json": b"{}", "model.safetensors": b"x" * 9}
    assert call("pull", "some/model", "--out", str(tmp_path / "out")) == 6
    assert "edge-vla export some/model" in capsys.readouterr().err
    assert not any("resolve" in path for path in hub.asked)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert call("pull", "some/model", "--out", str(tmp_path / "out")) == 4
    assert "the Hub is not reached" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["artifact", "a/b/c", "./x/y", "x/", "@main"])
def test_what_is_no_name(name: str, tiny_artifacts: Mapping[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("push", str(tiny_artifacts[4]), name) == 2
    assert "expected ORG/NAME" in capsys.readouterr().err
