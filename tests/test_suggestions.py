"""Did you mean: a near path, option or data set is named; one that is far is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import edge_vla
from edge_vla.cli import main
from edge_vla.errors import UsageError
from edge_vla.suggestions import choose, near_path, nearest
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("word", "found"),
    [("NATIVE", "native"), ("brigde_orig", "bridge_orig"), ("torhc", "torch"), ("cuda", None)],
)
def test_the_nearest_word(word: str, found: str | None) -> None:
    assert nearest(word, ["onnx", "native", "torch", "bridge_orig"]) == found


def test_what_to_choose() -> None:
    assert choose("tow", ["one", "two"]) == "choose one of one, two"
    assert choose("towo", ["one", "two"]) == "choose one of one, two; did you mean 'two'?"
    assert choose("orin-16", ["orin-64", "orin-nx-16"]).endswith("did you mean 'orin-nx-16'?")
    assert "did you mean" not in choose("orin", ["orin-nx-8", "orin-nx-16"])


def test_a_near_path_is_near_in_every_part(tmp_path: Path) -> None:
    (tmp_path / "evidence" / "openvla-int4").mkdir(parents=True)
    assert near_path(tmp_path / "evidnce" / "openvla_int4") == tmp_path / "evidence" / "openvla-int4"
    assert near_path(tmp_path / "evidence" / "weights") is None
    assert near_path(tmp_path / "nothing" / "openvla-int4") is None


@pytest.mark.parametrize("command", ["inspect", "verify", "run", "bench", "export"])
@pytest.mark.parametrize("prefix", ["", "./", "absolute"])
def test_a_misspelt_path(
    command: str,
    prefix: str,
    tiny_artifacts: Mapping[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither a traceback nor a question to the Hub, though `models/int4` could be its name: exit code 2."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "openvla-int4").symlink_to(tiny_artifacts[4])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edge_vla.hub.fetch", lambda *_: pytest.fail("asked the Hub"))
    wrong = f"{tmp_path}/models/openvla-itn4" if prefix == "absolute" else f"{prefix}models/openvla-itn4"
    rest = {
        "run": ("--image", "x.png", "--instruction", "x"),
        "bench": ("--reference", TINY, "--out", "out"),
        "export": ("--out", "out"),
    }
    (tmp_path / "x.png").write_bytes((tiny_artifacts[4] / "golden" / "000.png").read_bytes())
    with pytest.raises(SystemExit) as end:
        main([command, wrong, *rest.get(command, ())])
    said = capsys.readouterr().err.replace("\n", " ")
    assert end.value.code == 2, said
    assert "no such directory" in said
    assert "did you mean" in said
    assert "models/openvla-int4" in said


@pytest.mark.parametrize("path", ["./nowhere", "../nowhere", "/nowhere/at/all", "nowhere", "~/nowhere-at-all", ""])
def test_loading_what_is_not_there(path: str) -> None:
    with pytest.raises(UsageError):
        edge_vla.load(path)


def test_a_misspelt_unnorm_key(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[4], check=False)
    with pytest.raises(UsageError, match="did you mean 'random'"):
        policy.dims("randon")
