"""A small Llama-like tokenizer in every state that a folder may hold it in, and what transformers 4.40.1 reads there.

`STATES` says how each folder differs from a plain one; `write` makes it; `ids` is what `LlamaTokenizerFast` of
transformers 4.40.1 gave for each of `prompts()`, in `tokenizer_states.json`, made by `make_tokenizer_states.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

RECORD: Final = Path(__file__).with_name("tokenizer_states.json")
SPACE: Final = "▁"
ROWS: Final = 32064  # of OpenVLA's embedding table
PAD: Final = 32000
WORDS: Final = re.findall(
    r"\w+",
    "in what action should the robot take to out pick up put place move open close push pull turn on off cup spoon "
    "towel drawer cabinet red green blue block and it of with between a user assistant chat",
)
TEMPLATE: Final = "In: What action should the robot take to {}?\nOut:"


@dataclass(frozen=True)
class State:
    """What is put over tokenizer.json and tokenizer_config.json; None takes a key away. `others` are whole files."""

    file: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def token(content: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, **plain, **flags, "special": special}


def mapped(content: str, **flags: bool) -> dict[str, Any]:
    """As special_tokens_map.json writes a token."""
    return {key: value for key, value in token(content, **flags).items() if key != "special"}


def truncation(length: int, direction: str = "Right", stride: int = 0) -> dict[str, Any]:
    return {"direction": direction, "max_length": length, "strategy": "LongestFirst", "stride": stride}


def padding(strategy: object, direction: str, multiple: int | None = None) -> dict[str, Any]:
    how = {"strategy": strategy, "direction": direction, "pad_to_multiple_of": multiple}
    return {**how, "pad_id": PAD, "pad_type_id": 0, "pad_token": "<PAD>"}


def post_processor(*, bos: bool, eos: bool) -> dict[str, Any]:
    def special(name: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    single = [special("<s>")] * bos + [{"Sequence": {"id": "A", "type_id": 0}}] + [special("</s>")] * eos
    known = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("<s>", 1), ("</s>", 2))}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


LLAMA: Final = ("LlamaTokenizer", "LlamaTokenizerFast")
SPECIALS: Final = ("<unk>", "<s>", "</s>")
STRIPPING: Final = {str(i): token(name, lstrip=True, rstrip=True) for i, name in enumerate(SPECIALS)}
STATES: Final[Mapping[str, State]] = {
    "plain": State(),
    "truncation": State({"truncation": truncation(12)}),
    "truncation from the left": State({"truncation": truncation(12, "Left", 2)}),
    "padding to a length": State({"padding": padding({"Fixed": 64}, "Right")}),
    "padding on the left": State({"padding": padding({"Fixed": 64}, "Left")}),
    "padding to the longest": State({"padding": padding("BatchLongest", "Left", 16)}),
    "truncation and padding": State({"truncation": truncation(9), "padding": padding({"Fixed": 9}, "Right")}),
    "both from the left": State({"truncation": truncation(9, "Left"), "padding": padding({"Fixed": 40}, "Left")}),
    "no beginning in the file": State({"post_processor": None}),
    "an end in the file": State({"post_processor": post_processor(bos=True, eos=True)}),
    "an end in the config": State(config={"add_eos_token": True}),
    "an end in both": State({"post_processor": post_processor(bos=True, eos=True)}, {"add_eos_token": True}),
    "add_bos_token is absent": State({"post_processor": None}, {"add_bos_token": None, "add_eos_token": None}),
    "a beginning that is none": State(config={"bos_token": "<unk>"}),
    "stripping in the config": State(config={"added_tokens_decoder": STRIPPING}),
    "stripping in the map": State(others={"special_tokens_map.json": {"eos_token": mapped("</s>", rstrip=True)}}),
    "special tokens in the config alone": State({"added_tokens": []}),
    "special tokens in the map alone": State(
        {"added_tokens": []},
        {"bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None},
        {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": mapped("</s>"), "unk_token": "<unk>"}},
    ),
    "added_tokens.json": State({"added_tokens": []}, {}, {"added_tokens.json": {"<PAD>": PAD, "<grip>": PAD + 1}}),
    "an added word": State(config={"added_tokens_decoder": {"32001": token("<grip>", special=False)}}),
    "a special word": State(config={"additional_special_tokens": ["cup"]}),
    "a special word in the map": State(others={"special_tokens_map.json": {"additional_special_tokens": ["cup"]}}),
    "special texts are split": State(config={"split_special_tokens": True}),
    "a short model_max_length": State(config={"model_max_length": 8, "padding_side": "left"}),
    "cleaning up": State(
        config={"clean_up_tokenization_spaces": True, "legacy": True, "use_default_system_prompt": True}
    ),
    "the fast class": State(config={"tokenizer_class": "LlamaTokenizerFast"}),
    "another class": State(config={"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": True}),
    "another class, no end": State(
        {"post_processor": post_processor(bos=True, eos=True)}, {"tokenizer_class": "PreTrainedTokenizerFast"}
    ),
}


def tokenizer() -> dict[str, Any]:
    """tokenizer.json: byte-pair encoding with byte fallback, whose merges grow each word from its left end."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
    pieces += [*"abcdefghijklmnopqrstuvwxyzIOW.,:?!/<>"]
    merges = list[tuple[str, str]]()
    for word in [*WORDS, "In", "Out", "What", f"{SPACE}{SPACE}"]:
        text = word if word.startswith(SPACE) else SPACE + word
        for i in range(1, len(text)):
            if (pair := (text[:i], text[i])) not in merges:
                merges.append(pair)
                pieces.append("".join(pair))
    pieces += [f"<unused_{i}>" for i in range(len(pieces), PAD)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token(name)} for i, name in [*enumerate(SPECIALS), (PAD, "<PAD>")]],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": post_processor(bos=True, eos=False),
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }


CONFIG: Final = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<PAD>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
    "padding_side": "right",
    "model_max_length": 2048,
}


def write(name: str, directory: Path) -> Path:
    """The tokenizer's files of one state in `directory`, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    state = STATES[name]
    files = {"tokenizer.json": {**tokenizer(), **state.file}, **state.others}
    if state.config is not None:
        changed = {**CONFIG, **state.config}
        files["tokenizer_config.json"] = {key: value for key, value in changed.items() if value is not None}
    for path, content in files.items():
        (directory / path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return directory


@cache
def prompts() -> tuple[str, ...]:
    """Full prompts: plain ones, and what people and machines put into an instruction."""
    verbs, things = ("pick up", "push", "turn on", "move", "open"), ("cup", "red block", "spoon", "drawer", "towel")
    places = ("", " and put it on the towel", " to the left of the cup", "  slowly")
    texts = [f"{verb} the {thing}{place}" for verb in verbs for thing in things for place in places]
    odd = (
        "", " ", "a", "PICK UP THE CUP", "Pick Up The Cup", "pick up the cup.", "pick  up   the cup",
        " pick up the cup", "pick up the cup ", "pick\nup", "pick up\r\nthe cup", "pick\tup", "\n",
        "pick up the cup\n", "naïve café", "杯子を取る", "возьми чашку", "ﬁne ﬂuﬀ", "e\u0301clair", "🤖 pick up 🥄",
        "👩‍👩‍👧", "\u200bpick", "\u202dleft", "pick\u00a0up", "\u2581pick", "▁▁ up", "<0x0A>", "</s>", "<s>",
        "<unk>", "<PAD>", "<pad>", "pick </s> up", "pick</s>up", "pick  </s>  up", "<s> pick up",
        "pick up </s>", "</s></s>", "pick <s> the <unk> cup", "<grip> the cup", "use <grip>", "<gripper>",
        "cup", "cups and cup", "the cup cup", "[INST] pick up [/INST]", "{instruction}", "%s",
        "pick up the cup?\nOut: x", "In: Out:", "12345 67", "0.5 m", "pick-up", "don't", "a" * 60,
        "pick up the cup " * 8, "to " * 40, "?", "!?.,:;", "C:\\cup", "http://cup.com/a?b=c", "\x00pick",
        "\x7f", "𝓅𝒾𝒸𝓀", "ÅÄÖ", "ß", "İ", "ǅ",
    )  # fmt: skip
    templates = [TEMPLATE.format(text) for text in (*texts, *odd)]
    # SimplerEnv hands the bare task over; others strip, or end in a space.
    bare = [*odd[:8], "put the spoon on the towel", "put the spoon on the towel ", *odd[27:41]]
    others = [TEMPLATE.format(text) + " " for text in odd[:6]]
    v01 = [f"A chat between a user and an assistant. USER: {text}? ASSISTANT:" for text in (*texts[:9], *odd[27:33])]
    return (*templates, *bare, *others, *v01)


@cache
def _record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def ids(name: str) -> list[list[int]]:
    """What transformers 4.40.1 gave for each of `prompts()` in the folder of this state."""
    differing = _record()["differing"][name]
    return [differing.get(str(i), plain) for i, plain in enumerate(_record()["plain"])]
