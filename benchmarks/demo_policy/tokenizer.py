"""The demo policy's vocabulary, laid out like OpenVLA's: text first, then the action ids, then padding.

Each word of the demo's instructions is one token, and so are the two fixed parts of the prompt. Other text is spelled
in characters; a character outside the table becomes `<unk>`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.demo_policy.wordings import vocabulary

SPACE: Final = "▁"  # stands for a space; alone, it is the empty token after the prompt
PROMPT_HEAD: Final = "In: What action should the robot take to"
PROMPT_TAIL: Final = "?\nOut:"
BINS: Final = 256
PADDING: Final = 64
TEXT_TOKENS: Final = 192
ACTION_END: Final = TEXT_TOKENS + BINS
ROWS: Final = ACTION_END + PADDING
SPECIALS: Final = ("<unk>", "<s>", "</s>")
_ACTION_SIGNS: Final = 0xE000  # private use: no text contains them
_LATIN_1: Final = 0xA1


def pieces() -> list[tuple[str, float]]:
    """Every piece with its score, in the order of ids: one long piece beats any way of spelling it."""
    words = [SPACE + PROMPT_HEAD.replace(" ", SPACE), PROMPT_TAIL, SPACE]
    words += [SPACE + word for word in sorted({*vocabulary(), *PROMPT_HEAD.lower().split()})]
    signs = ["\n", *(chr(code) for code in range(33, 127))]
    text: list[tuple[str, float]] = [(special, 0.0) for special in SPECIALS]
    text += [(word, -2.0) for word in words]
    text += [(sign, -12.0) for sign in signs]
    text += [(chr(_LATIN_1 + i), -12.0) for i in range(TEXT_TOKENS - len(text))]
    return text + [(chr(_ACTION_SIGNS + i), -20.0) for i in range(BINS)]


def document() -> dict[str, object]:
    """tokenizer.json: a Unigram model behind Llama's normalizer and its template with the first token."""
    special = [
        {
            "id": index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, content in [*enumerate(SPECIALS), (ACTION_END, "<PAD>")]
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [list(piece) for piece in pieces()], "byte_fallback": False},
    }


def write(path: Path) -> None:
    path.write_text(json.dumps(document(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@cache
def _ids() -> dict[str, int]:
    return {piece: index for index, (piece, _) in enumerate(pieces())}


def word_ids() -> dict[str, int]:
    """Word -> id, for every word of the vocabulary."""
    return {piece[1:]: index for piece, index in _ids().items() if piece.startswith(SPACE) and piece[1:]}


def encode(instruction: str) -> list[int]:
    """Prompt ids for training, beginning token and empty token included. Only for words of the vocabulary."""
    ids = _ids()
    words = [ids[SPACE + word] for word in instruction.lower().split()]
    return [1, ids[SPACE + PROMPT_HEAD.replace(" ", SPACE)], *words, ids[PROMPT_TAIL], ids[SPACE]]
