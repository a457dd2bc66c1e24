"""One checkpoint as the rest of the code sees it: tensors, config and tokenizer, from wherever they come.

`SRC` is a local Hugging Face directory, quantised or not, a Hub id (`org/name[@revision]`), or `random:openvla-7b`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_vla.checkpoint.keys import check_tensors
from edge_vla.checkpoint.lora import Adapter, Arithmetic, merge_adapters
from edge_vla.checkpoint.quantised import open_directory
from edge_vla.checkpoint.random import open_random
from edge_vla.checkpoint.tensors import TensorSource
from edge_vla.errors import BackendError, CheckpointError, UsageError
from edge_vla.files import sha256_of
from edge_vla.openvla.config import PolicyConfig, read_statistics
from edge_vla.openvla.prompt import Prompter
from edge_vla.openvla.tokenizer import read_tokenizer

RANDOM = "random:"
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")
HUB_FILES = ["*.json", "*.safetensors", "*.py"]  # code is copied by `--format`, never run


@dataclass(frozen=True)
class Checkpoint:
    """`origin` names the source as the user did; `files` are what its identity is hashed from, base and adapters."""

    origin: str
    tensors: TensorSource
    config: PolicyConfig
    tokenizer_json: str
    files: tuple[tuple[Path, ...], ...]
    adapters: tuple[str, ...] = ()
    arithmetic: Arithmetic = "fp32"

    @property
    def local(self) -> bool:
        """Whether the user named a directory of their own, not something public."""
        return Path(self.origin).is_dir()

    def identity(self) -> list[dict[str, str]]:
        """sha256 by name of every file that the weights came from: the base's, then each adapter's, in order.

        Without directories: the same weights elsewhere are the same. A random source has no files.
        """
        return [{path.name: sha256_of(path) for path in source} for source in self.files]


def open_checkpoint(source: str | Path, adapters: Sequence[Path] = (), arithmetic: Arithmetic = "fp32") -> Checkpoint:
    """Open, check every key and shape, and put the adapters' merge in front. Weights are read when they are used."""
    base = _open_base(str(source))
    check_tensors(base.tensors, base.config.spec)
    if not adapters:
        return base
    loaded = [Adapter(_directory(path)) for path in adapters]
    config = base.config
    for adapter in loaded:
        if statistics := read_statistics(adapter.directory):
            config = replace(config, statistics=statistics)
    return replace(
        base,
        tensors=merge_adapters(base.tensors, loaded, arithmetic),
        config=config,
        files=(*base.files, *((adapter.directory / "adapter_config.json", adapter.path) for adapter in loaded)),
        adapters=tuple(map(str, loaded)),
        arithmetic=arithmetic,
    )


def _open_base(source: str) -> Checkpoint:
    if source.startswith(RANDOM):
        return Checkpoint(source, *open_random(source.removeprefix(RANDOM)), files=())
    directory = Path(source)
    if not directory.is_dir():
        directory = _download(source)
    if (directory / "adapter_config.json").exists() and not (directory / "config.json").exists():
        raise UsageError(f"{directory} is an adapter: give its base checkpoint, and this directory with --adapter")
    if (directory / "manifest.json").exists() and not (directory / "config.json").exists():
        raise UsageError(f"{directory} is an artifact: give the checkpoint that it was made from")
    text = read_tokenizer(directory)
    tensors, files = open_directory(directory)
    config = PolicyConfig.read(directory)
    Prompter(text, config.prompt, config.spec.decoder)("go")  # a tokenizer that fails must fail now, not after hours
    return Checkpoint(source, tensors, config, text, (tuple(files),))


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"--adapter {path}: no such directory")
    return path


def _download(source: str) -> Path:
    match = HUB_ID.fullmatch(source)
    if not match:
        raise UsageError(f"{source}: no such directory, and not a Hub id (org/name) nor {RANDOM}NAME")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise BackendError(f"{source} is not a local directory; to fetch it: pip install 'edge-vla[hub]'") from error
    try:
        return Path(snapshot_download(match["id"], revision=match["revision"], allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{source} is no local directory and could not be fetched ({reason})") from error
