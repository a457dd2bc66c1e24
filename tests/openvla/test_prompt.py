"""Prompt ids beside transformers' own, for every state that a folder may hold its tokenizer in.

Two oracles: what transformers 4.40.1, which OpenVLA pins, gave (recorded), and the installed transformers (asked here).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edge_vla.errors import CheckpointError
from edge_vla.openvla import Prompter, PromptStyle
from edge_vla.openvla.tokenizer import overridden, read_tokenizer
from edge_vla.spec import OPENVLA_7B
from tests.golden import tokenizer_states
from tests.golden.tokenizer_states import CONFIG, LLAMA, STATES, prompts, write

EVERY = pytest.mark.parametrize("name", STATES)
SAVED = [name for name in STATES if "truncation" in name or "padding" in name or "left" in name]
BOS = 1


def read(name: str, directory: Path) -> Prompter:
    return Prompter(read_tokenizer(write(name, directory)), PromptStyle.OPENVLA, OPENVLA_7B.decoder)


def encode(prompter: Prompter, text: str) -> list[int]:
    try:
        return list(prompter.encode(text))
    except CheckpointError:
        return []


@EVERY
def test_the_ids_of_the_pinned_transformers(name: str, tmp_path: Path) -> None:
    """Where it begins a prompt with another token than the network's, the tokenizer is refused."""
    prompter = read(name, tmp_path)
    expected = [ids if ids[0] == BOS else [] for ids in tokenizer_states.ids(name)]
    assert len(expected) == len(prompts()) >= 200
    assert [encode(prompter, text) for text in prompts()] == expected


@EVERY
def test_the_ids_of_the_installed_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    prompter, folder = read(name, tmp_path), tmp_path
    (folder / "config.json").write_text('{"model_type": "openvla"}', encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # Version 5 has other defaults, and splits special texts where 4.40.1 ignores that key.
    llama = {key: config.get(key, key == "add_bos_token") for key in ("add_bos_token", "add_eos_token")}
    options = {"split_special_tokens": False, **(llama if config["tokenizer_class"] in LLAMA else {})}
    if config["tokenizer_class"] not in LLAMA:  # version 5 honours them for this class, 4.40.1 does not
        (folder / "tokenizer_config.json").write_text(
            json.dumps({key: value for key, value in config.items() if key not in llama}), encoding="utf-8"
        )
    oracle = transformers.AutoTokenizer.from_pretrained(folder, **options)
    for text in prompts():
        expected = oracle(text, padding=False, truncation=None, max_length=None)["input_ids"]
        assert encode(prompter, text) == (expected if expected[0] == BOS else []), text


def test_the_states_differ() -> None:
    """Else the oracles show nothing."""
    plain = tokenizer_states.ids("plain")
    assert sum(tokenizer_states.ids(name) != plain for name in STATES) >= 10


@pytest.mark.parametrize("name", SAVED)
def test_a_file_saved_with_truncation_or_padding_runs_without(name: str, tmp_path: Path) -> None:
    """From an artifact of an older edge-vla too, which holds the file as it was."""
    raw = (write(name, tmp_path) / "tokenizer.json").read_text(encoding="utf-8")
    prompter, unreset = Prompter(raw, PromptStyle.OPENVLA, OPENVLA_7B.decoder), Tokenizer.from_str(raw)
    assert [list(prompter.encode(text)) for text in prompts()] == tokenizer_states.ids("plain")
    assert any(
        unreset.encode(text).ids != ids for text, ids in zip(prompts(), tokenizer_states.ids("plain"), strict=True)
    )


@EVERY
def test_what_was_read_once_reads_the_same_again(name: str, tmp_path: Path) -> None:
    """An exported checkpoint holds the changed file beside the same config."""
    text = read_tokenizer(write(name, tmp_path))
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert read_tokenizer(tmp_path) == text


@pytest.mark.parametrize(
    "name", ["plain", "truncation", "an end in the config", "stripping in the config", "the fast class"]
)
def test_a_folder_saved_again_after_a_call_with_a_length(name: str, tmp_path: Path) -> None:
    """What quantisers do: call the tokenizer for fixed lengths, then save it beside the weights."""
    transformers = pytest.importorskip("transformers")
    folder = write(name, tmp_path / "first")
    (folder / "config.json").write_text('{"model_type": "openvla"}', encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer("pick up", truncation=True, max_length=5, padding="max_length")
    tokenizer.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"], "else this shows nothing"
    assert saved["padding"], "else this shows nothing"
    prompter = Prompter(read_tokenizer(tmp_path / "again"), PromptStyle.OPENVLA, OPENVLA_7B.decoder)
    for text in prompts():
        assert encode(prompter, text) == tokenizer(text, padding=False, truncation=None, max_length=None)["input_ids"]


OVERRIDDEN = {
    "plain": [],
    "truncation": ["truncation"],
    "truncation and padding": ["truncation", "padding"],
    "no beginning in the file": ["begins and ends"],
    "an end in both": [],
    "stripping in the config": ["added tokens"],
    "stripping in the map": [],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_said(name: str, tmp_path: Path) -> None:
    lines = overridden(write(name, tmp_path))
    assert len(lines) == len(OVERRIDDEN[name])
    assert all(word in line for word, line in zip(OVERRIDDEN[name], lines, strict=True))


def test_a_file_that_needs_no_change_keeps_its_bytes(tmp_path: Path) -> None:
    path = write("plain", tmp_path) / "tokenizer.json"
    odd = json.dumps(tokenizer_states.tokenizer(), indent=3)
    path.write_text(odd, encoding="utf-8")
    assert read_tokenizer(tmp_path) == odd
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_tokenizer(tmp_path) == odd


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", json.dumps({**CONFIG, "add_bos_token": "yes"}), "add_bos_token: expected bool"),
        ("tokenizer_config.json", json.dumps({**CONFIG, "bos_token": None}), "adds a token of which it has no name"),
        ("tokenizer_config.json", json.dumps({**CONFIG, "bos_token": {"lstrip": True}}), "malformed"),
        ("special_tokens_map.json", json.dumps({"eos_token": 2}), "eos_token"),
        ("added_tokens.json", json.dumps({"<grip>": "one"}), "expected int"),
    ],
)
def test_damage_is_named(file: str, text: str, said: str, tmp_path: Path) -> None:
    (write("plain", tmp_path) / file).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as found:
        read_tokenizer(tmp_path)
    assert file in str(found.value)
