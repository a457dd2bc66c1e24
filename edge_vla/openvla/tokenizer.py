"""tokenizer.json as OpenVLA's processor uses it: one file that says all, whatever its neighbours override.

OpenVLA pins transformers 4.40.1. Loading a folder, that builds the post-processor of Llama's tokenizer anew and adds
the tokens of tokenizer_config.json or special_tokens_map.json; on every call it takes off truncation and padding.
`read_tokenizer` does the same once. No id hangs on the rest of those files: not on `legacy`, `model_max_length`,
`padding_side` or `split_special_tokens`, nor on `add_prefix_space`, which 4.40.1 does not hand on. tokenizer.model is
not read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from tokenizers import AddedToken, Tokenizer, processors

from edge_vla import typed_json
from edge_vla.errors import CheckpointError

FILE: Final = "tokenizer.json"
CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"
ADDED_TOKENS: Final = "added_tokens.json"
LLAMA: Final = ("LlamaTokenizer", "LlamaTokenizerFast")  # a file of another class keeps its own post-processor
PROBE: Final = "a"

T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """A text that is one token wherever it stands; `lstrip` and `rstrip` take the spaces beside it along."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None  # None: unless it is special
    special: bool = False

    def __str__(self) -> str:
        return self.content

    def added(self) -> AddedToken:
        flags = dataclasses.asdict(self)
        normalized = not self.special if self.normalized is None else self.normalized
        return AddedToken(flags.pop("content"), **{**flags, "normalized": normalized})


@dataclass(frozen=True)
class SpecialTokens:
    """The named ones, in the order in which transformers adds them."""

    bos_token: Token | str | None = None
    eos_token: Token | str | None = None
    unk_token: Token | str | None = None
    sep_token: Token | str | None = None
    pad_token: Token | str | None = None
    cls_token: Token | str | None = None
    mask_token: Token | str | None = None
    additional_special_tokens: list[Token | str] | None = None

    def all(self) -> Iterator[Token | str]:
        named = [getattr(self, field.name) for field in dataclasses.fields(SpecialTokens)[:-1]]
        yield from (token for token in named if token is not None)
        yield from self.additional_special_tokens or ()


@dataclass(frozen=True)
class TokenizerConfig(SpecialTokens):
    """What is read of tokenizer_config.json. Llama's class has names of its own for absent tokens."""

    tokenizer_class: str | None = None
    add_bos_token: bool | None = True
    add_eos_token: bool | None = False
    added_tokens_decoder: dict[str, Token] | None = None

    @property
    def llama(self) -> bool:
        return self.tokenizer_class in LLAMA


def read_tokenizer(directory: Path) -> str:
    """The text of tokenizer.json, changed where transformers would override it; CheckpointError if it is damaged."""
    text = _read(directory / FILE)
    tokenizer = parse_tokenizer(text)
    before = tokenizer.to_str()
    plain(tokenizer)
    if (directory / CONFIG).is_file():
        config, tokens = _tokens(directory, text)
        _add(tokenizer, config, tokens)
        if config.llama:
            _wrap(tokenizer, config)
    after: str = tokenizer.to_str()
    return text if after == before else after


def overridden(directory: Path) -> tuple[str, ...]:
    """What `read_tokenizer` leaves out or replaces of tokenizer.json, a line each; of a folder that it reads."""
    text = _read(directory / FILE)
    raw, now = json.loads(text), json.loads(read_tokenizer(directory))
    lines = [
        f"its {key}, which transformers takes off at every call"
        for key in ("truncation", "padding")
        if raw.get(key) is not None
    ]
    if raw.get("post_processor") != now.get("post_processor"):
        lines.append(f"how it begins and ends a prompt, which transformers makes anew from {CONFIG}")
    if raw.get("added_tokens") != now.get("added_tokens"):
        lines.append(f"its added tokens, over which transformers puts those of {CONFIG} and {SPECIAL_TOKENS}")
    return tuple(lines)


def parse_tokenizer(text: str) -> Tokenizer:
    """tokenizer.json as it says; CheckpointError if `tokenizers` cannot read it."""
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{FILE} cannot be read: {error}") from error


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Itself without truncation and padding, as OpenVLA's processor sets it at every call."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokens(directory: Path, text: str) -> tuple[TokenizerConfig, dict[int, Token]]:
    """The config with its special tokens decided, and the tokens to add, by the id that a file gives them."""
    raw = _object(directory / CONFIG)
    if raw.get("tokenizer_class") in LLAMA:
        raw = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **raw}
    config = _typed(TokenizerConfig, raw, directory / CONFIG)
    if config.added_tokens_decoder is not None:
        return config, {int(i): token for i, token in config.added_tokens_decoder.items() if i.isdecimal()}
    tokens = dict[int, Token]()
    if (path := directory / SPECIAL_TOKENS).is_file():
        named = _object(path)
        given = _typed(SpecialTokens, named, path)
        both = [*(config.additional_special_tokens or ()), *(given.additional_special_tokens or ())]
        over = {name: getattr(given, name) for name in named if name in vars(given)}
        config = replace(config, **{**over, "additional_special_tokens": both})
    if (path := directory / ADDED_TOKENS).is_file():
        special = {str(token) for token in config.all()}
        ids = _typed(dict[str, int], _object(path), path)
        tokens |= {i: Token(content, special=content in special) for content, i in ids.items()}
    for added in json.loads(text).get("added_tokens") or ():
        tokens[added["id"]] = typed_json.from_json(Token, added, FILE, ignore_unknown=True)
    return config, tokens


def _add(tokenizer: Tokenizer, config: TokenizerConfig, tokens: Mapping[int, Token]) -> None:
    """Add the tokens in order of their ids, then each special one that is none yet. What is there keeps its id."""
    special = {str(token) for token in config.all()}
    for _, token in sorted(tokens.items()):
        if token.special or token.content in special:
            tokenizer.add_special_tokens([token.added()])
        else:
            tokenizer.add_tokens([token.added()])
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for one in config.all():
        if str(one) not in known:
            tokenizer.add_special_tokens([one if isinstance(one, str) else replace(one, special=True).added()])


def _wrap(tokenizer: Tokenizer, config: TokenizerConfig) -> None:
    """Begin and end a prompt as the config says. A file that does so already stays as it is."""
    begin, end = config.bos_token if config.add_bos_token else None, config.eos_token if config.add_eos_token else None
    names = {name: str(token) for name, token in (("$bos", begin), ("$eos", end)) if token is not None}
    ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    if (config.add_bos_token and begin is None) or (config.add_eos_token and end is None):
        raise CheckpointError(f"{CONFIG} adds a token of which it has no name: give bos_token and eos_token")
    between = tokenizer.encode(PROBE, add_special_tokens=False).ids
    if tokenizer.encode(PROBE).ids == [*([ids["$bos"]] if begin else []), *between, *([ids["$eos"]] if end else [])]:
        return
    single = [*([names["$bos"]] if begin else []), "$A", *([names["$eos"]] if end else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(names[name], ids[name]) for name in names]
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: copy it from the base model (tokenizer.model is not read)"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error}): download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _typed(kind: type[T], raw: Mapping[str, object], path: Path) -> T:
    try:
        return typed_json.from_json(kind, raw, path.name, ignore_unknown=True)
    except ValueError as error:
        raise CheckpointError(f"{path} is malformed ({error}): download it again") from error
