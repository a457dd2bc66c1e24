"""Instruction -> token ids, exactly as OpenVLA was trained to read them.

The tokenizer is the checkpoint's own (`openvla.tokenizer`), run by `tokenizers`: transformers 5 has a Llama tokenizer
that drops the file's pipeline for its own, and gives other ids beside special tokens. A lone space piece ends the
prompt, because the action string followed a space in training; its id is looked up, never assumed.
"""

from __future__ import annotations

import warnings
from enum import Enum
from functools import cached_property

from edge_vla.errors import CheckpointError, EdgeVLAWarning, UsageError
from edge_vla.openvla.tokenizer import parse_tokenizer, plain
from edge_vla.spec import DecoderSpec

SPACE_PIECE = "▁"


class PromptStyle(str, Enum):
    OPENVLA = "openvla"
    V01 = "v01"


TEMPLATES = {
    PromptStyle.OPENVLA: "In: What action should the robot take to {instruction}?\nOut:",
    PromptStyle.V01: (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: What action should the robot take to {instruction}? ASSISTANT:"
    ),
}


class Prompter:
    """Builds prompts in one style with one tokenizer."""

    def __init__(self, tokenizer_json: str, style: PromptStyle, decoder: DecoderSpec) -> None:
        self.tokenizer = plain(parse_tokenizer(tokenizer_json))
        if self.tokenizer.get_vocab_size() > decoder.vocab_rows:
            raise CheckpointError(
                f"tokenizer.json has {self.tokenizer.get_vocab_size()} pieces, the network {decoder.vocab_rows} rows: "
                "it belongs to another model"
            )
        self.style = style
        self.bos = decoder.bos

    @cached_property
    def empty_token(self) -> int:
        token: int | None = self.tokenizer.token_to_id(SPACE_PIECE)
        if token is None:
            raise CheckpointError(f"tokenizer.json has no piece {SPACE_PIECE!r}: it is not an OpenVLA tokenizer")
        return token

    def text(self, instruction: str) -> str:
        if not instruction.strip():
            warnings.warn("the instruction is empty: the policy will act on the image alone", EdgeVLAWarning, 4)
        return TEMPLATES[self.style].format(instruction=instruction.lower())

    def encode(self, text: str) -> tuple[int, ...]:
        """Prompt text -> ids as the tokenizer gives them, beginning-of-sequence first."""
        try:
            ids: list[int] = self.tokenizer.encode(text).ids
        except (UnicodeEncodeError, TypeError) as error:  # which one depends on the version of tokenizers
            raise UsageError("the instruction is not valid Unicode text: write it in UTF-8") from error
        if not ids or ids[0] != self.bos:
            raise CheckpointError(f"tokenizer.json does not begin a prompt with token {self.bos}: got {ids[:3]}")
        return tuple(ids)

    def finish(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Append the empty token unless it is there already, as upstream's `predict_action` does."""
        return ids if ids[-1] == self.empty_token else (*ids, self.empty_token)

    def __call__(self, instruction: str) -> tuple[int, ...]:
        return self.finish(self.encode(self.text(instruction)))
