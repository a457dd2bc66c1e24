"""`preprocess` of a policy, of one action and of the command line: the same steps, named in what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge_vla
from edge_vla.cli import main
from edge_vla.errors import UsageError
from edge_vla.openvla.evaluation import SCRIPTS, Preprocess, prepare
from tests.conftest import TINY
from tests.golden.seeded import seeded_picture

TEXT = "put the red block on the plate"
NAMES: list[Preprocess] = ["libero", "libero-upright", "simpler"]
SIZE = 28  # of the tiny policy


def picture(key: str = "seen by a robot") -> Image.Image:
    return Image.fromarray(seeded_picture(key, 97, 61))


def result(action: edge_vla.Action) -> tuple[object, ...]:
    return action.tokens, action.margins, action.values.tolist()


@pytest.fixture(scope="module")
def policy(tiny_artifacts: Mapping[int, Path]) -> edge_vla.Policy:
    return edge_vla.load(tiny_artifacts[4], "cpu", check=False)


def test_none_is_the_default_and_changes_nothing(policy: edge_vla.Policy) -> None:
    plain = policy.act(picture(), TEXT)
    assert plain.preprocess == policy.preprocess == "none"
    assert plain.to_json()["preprocess"] == "none"
    assert result(policy.act(picture(), TEXT, preprocess="none")) == result(plain)


@pytest.mark.parametrize("name", NAMES)
def test_an_action_is_that_of_the_prepared_image(policy: edge_vla.Policy, name: Preprocess) -> None:
    asked = policy.act(picture(), TEXT, preprocess=name)
    assert asked.preprocess == name
    assert result(asked) == result(policy.act(prepare(picture(), name, SIZE), TEXT))
    assert asked.margins != policy.act(picture(), TEXT).margins, "the step does nothing to this image"


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_keeps_its_choice(name: Preprocess, tiny_artifacts: Mapping[int, Path]) -> None:
    """Golden frames are replayed as recorded; actions, sessions and forced passes have the script's images."""
    chosen, plain = (edge_vla.load(tiny_artifacts[4], "cpu", preprocess=one) for one in (name, "none"))
    prepared = prepare(picture(), name, SIZE)
    assert result(chosen.act(picture(), TEXT)) == result(plain.act(prepared, TEXT))
    assert result(chosen.session().act(picture(), TEXT)) == result(plain.session().act(prepared, TEXT))
    assert chosen.session().act(picture(), TEXT).preprocess == name
    assert result(chosen.act(picture(), TEXT, preprocess="none")) == result(plain.act(picture(), TEXT))
    tokens = plain.act(prepared, TEXT).tokens
    assert (chosen.forced(picture(), TEXT, tokens) == plain.forced(prepared, TEXT, tokens)).all()


def test_a_checkpoint_takes_it_too() -> None:
    chosen, plain = edge_vla.load(TINY, "cpu", preprocess="simpler"), edge_vla.load(TINY, "cpu")
    assert result(chosen.act(picture(), TEXT)) == result(plain.act(prepare(picture(), "simpler", SIZE), TEXT))


def test_an_unknown_name_lists_those_that_are_known(policy: edge_vla.Policy, tmp_path: Path) -> None:
    known = f"--preprocess libero_spatial: choose one of {', '.join(SCRIPTS)}"
    with pytest.raises(UsageError, match=known):
        policy.act(picture(), TEXT, preprocess="libero_spatial")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=known):
        edge_vla.load(tmp_path / "is not looked at", preprocess="libero_spatial")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCRIPTS)
def test_run_does_it_and_says_so(
    policy: edge_vla.Policy,
    name: Preprocess,
    tiny_artifacts: Mapping[int, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "image.png"
    picture().save(file)
    ask = ["run", str(tiny_artifacts[4]), "--image", str(file), "--instruction", TEXT, "--device", "cpu"]
    asked = [*ask, "--preprocess", name]
    for arguments in (asked, [*asked, "--json"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code
        shown = capsys.readouterr()
        assert ("--json" in arguments) or f"preprocess {name}: " in shown.err
    answer = json.loads(shown.out)
    action = policy.act(np.asarray(picture()), TEXT, preprocess=name)
    assert (answer["preprocess"], answer["tokens"]) == (name, list(action.tokens))


@pytest.mark.parametrize(
    "command",
    [
        ["run", TINY, "--image", "IMAGE", "--instruction", TEXT],
        ["serve", "nowhere"],
        ["bench", "nowhere", "--reference", TINY, "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_refuses_another_name(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture().save(tmp_path / "IMAGE.png")
    places = {"IMAGE": str(tmp_path / "IMAGE.png"), "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as end:
        main([*(places.get(word, word) for word in command), "--preprocess", "bridge"])
    assert end.value.code == UsageError.exit_code
    assert "--preprocess bridge: choose one of none, libero" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
