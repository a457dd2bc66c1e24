"""One checkpoint as the rest of the code sees it: tensors, config and tokenizer, from wherever they come.

`SRC` is a local Hugging Face directory, quantised or not, a Hub id (`org/name[@revision]`), or `random:openvla-7b`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edge_vla.checkpoint.folder import STATISTICS, TOKENIZER, Use, check_links
from edge_vla.checkpoint.keys import check_tensors, key_table
from edge_vla.checkpoint.kinds import Kind, Recognised, crop_doubt, recognise, recognise_adapter, recognise_names
from edge_vla.checkpoint.lora import Adapter, merge_adapters
from edge_vla.checkpoint.lora_config import Arithmetic
from edge_vla.checkpoint.quantised import open_directory
from edge_vla.checkpoint.random import open_random
from edge_vla.checkpoint.reading import (
    BASE_APPLIES,
    Reading,
    find_run_statistics,
    merged_already,
    read_folder,
    read_refused,
    statistics_doubts,
)
from edge_vla.checkpoint.tensors import TensorSource
from edge_vla.errors import CheckpointError, EdgeVLAWarning, UsageError
from edge_vla.files import sha256_of, stand_in
from edge_vla.hub import fetch, names, repository_or_refusal
from edge_vla.openvla.config import PolicyConfig, read_statistics_file
from edge_vla.openvla.prompt import Prompter, PromptStyle
from edge_vla.openvla.statistics import Statistics
from edge_vla.openvla.tokenizer import read_tokenizer
from edge_vla.suggestions import choose, no_such

RANDOM = "random:"
HUB_FILES = ["*.json", "*.safetensors", "*.py"]  # code is copied by `--format`, never run


@dataclass(frozen=True)
class Checkpoint:
    """`origin` names the source as the user did; `files` are what its identity is hashed from, base and adapters.

    `reading` says which files of it were read and which were not.
    """

    origin: str
    tensors: TensorSource
    config: PolicyConfig
    tokenizer_json: str
    files: tuple[tuple[Path, ...], ...]
    reading: Reading
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

    def settings_sha256(self) -> str:
        """Of what turns weights into actions beside them: dimensions, prompt, image, statistics, tokenizer."""
        config = self.config
        parts = [asdict(config.spec), config.prompt.value, asdict(config.image), config.statistics.raw]
        text = json.dumps([*parts, self.tokenizer_json], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def open_checkpoint(
    source: str | Path,
    adapters: Sequence[Path] = (),
    arithmetic: Arithmetic = "fp32",
    *,
    prompt: str | None = None,
    statistics: str | Path | None = None,
) -> Checkpoint:
    """Open, check every key and shape, and put the adapters' merge in front. Weights are read when they are used.

    `prompt` ("openvla" or "v01") and `statistics` (a dataset_statistics.json) replace what the folder says. Raises
    UsageError for what is no source, CheckpointError for one that is damaged or another kind of policy.
    """
    adapters = [_local(path) for path in adapters]
    for path in adapters:
        check_links(path)
        refuse(recognise_adapter(path))
    twice = [path for number, path in enumerate(adapters) if any(path.samefile(one) for one in adapters[:number])]
    if twice:
        raise UsageError(f"--adapter {twice[0]} is given twice, and would be merged twice: give it once")
    given = _statistics_file(statistics) if statistics is not None else None
    base = _open_base(str(source), tuple(adapters), given)
    check_tensors(base.tensors, base.config.spec)
    merged = _merge(base, [Adapter(path) for path in adapters], arithmetic) if adapters else base
    if given is not None:
        merged = _with_statistics(merged, given, f"--statistics {statistics}")
    return merged if prompt is None else _with_prompt(merged, prompt)


def _merge(base: Checkpoint, loaded: Sequence[Adapter], arithmetic: Arithmetic) -> Checkpoint:
    found = [find_run_statistics(adapter.directory) for adapter in loaded]
    folder = base.files[0][0].parent if base.files else Path(base.origin)
    dead = [name for name, key in key_table(base.config.spec).items() if not key.live]
    with warnings.catch_warnings():  # the reading has the same lines
        warnings.simplefilter("ignore", EdgeVLAWarning)
        tensors = merge_adapters(base.tensors, loaded, arithmetic)
    merged = replace(
        base,
        tensors=tensors,
        files=(*base.files, *((adapter.directory / "adapter_config.json", adapter.path) for adapter in loaded)),
        adapters=tuple(map(str, loaded)),
        arithmetic=arithmetic,
        reading=replace(
            base.reading,
            merged=tuple(map(str, loaded)),
            doubts=(
                *base.reading.doubts,
                *(doubt for adapter in loaded for doubt in crop_doubt(adapter.directory)),
                *(doubt for adapter in loaded for doubt in merged_already(folder, adapter)),
                *(doubt for adapter in loaded for doubt in adapter.doubts(arithmetic)),
                *(doubt for adapter in loaded for doubt in adapter.gaps(base.tensors, dead)),
                *(doubt for one in found for doubt in one.doubts),
            ),
        ),
    )
    for one in found:
        if one.statistics is not None:
            merged = _with_statistics(merged, one.statistics, one.why)
    return merged


def _with_statistics(checkpoint: Checkpoint, statistics: Statistics, why: str) -> Checkpoint:
    """In place of what the checkpoint had; doubts about those are settled."""
    settled = {*statistics_doubts(checkpoint.config.statistics)}
    doubts = [doubt for doubt in checkpoint.reading.doubts if doubt not in settled and not doubt.endswith(BASE_APPLIES)]
    read, gone = checkpoint.reading.read, Use(STATISTICS, f"{why} comes in its place")
    kept = tuple(use for use in read if use.name != STATISTICS)
    reading = replace(
        checkpoint.reading,
        read=kept,
        ignored=(*checkpoint.reading.ignored, *([gone] if len(kept) < len(read) else [])),
        statistics=why,
        doubts=(*doubts, *statistics_doubts(statistics)),
    )
    return replace(checkpoint, config=replace(checkpoint.config, statistics=statistics), reading=reading)


def _with_prompt(checkpoint: Checkpoint, prompt: str) -> Checkpoint:
    styles = [style.value for style in PromptStyle]
    if prompt not in styles:
        raise UsageError(f"--prompt {prompt}: {choose(prompt, styles)}")
    reading = checkpoint.reading
    doubts = tuple(doubt for doubt in reading.doubts if "--prompt" not in doubt)
    return replace(
        checkpoint,
        config=replace(checkpoint.config, prompt=PromptStyle(prompt)),
        reading=replace(reading, prompt=f"{prompt}: --prompt says so", doubts=doubts),
    )


def _open_base(source: str, adapters: tuple[Path, ...], statistics: Statistics | None) -> Checkpoint:
    if source.startswith(RANDOM):
        reading = Reading(Kind.RANDOM, source, prompt="openvla", statistics="made up")
        return Checkpoint(source, *open_random(source.removeprefix(RANDOM)), files=(), reading=reading)
    directory = Path(source)
    if not directory.is_dir():
        directory = _download(source)
    check_links(directory)
    recognised = recognise(directory, adapters)
    refuse(recognised)
    if reason := stand_in(directory / TOKENIZER):
        raise CheckpointError(f"{directory / TOKENIZER} is {reason}")
    text = read_tokenizer(directory)
    tensors, files = open_directory(directory)
    config = PolicyConfig.read(directory, statistics)
    Prompter(text, config.prompt, config.spec.decoder)("go")  # a tokenizer that fails must fail now, not after hours
    reading = read_folder(directory, recognised, tensors, config)
    return Checkpoint(source, tensors, config, text, (tuple(files),), reading)


def diagnose(source: str | Path, adapters: Sequence[Path] = ()) -> Reading | None:
    """What a local directory is that `open_checkpoint` refuses by name; None for one that it may open."""
    directory = Path(source)
    if not directory.is_dir():
        return None
    recognised = recognise(directory, tuple(adapters))
    return read_refused(directory, recognised) if recognised.refusal is not None else None


def refuse(found: Recognised | Reading) -> None:
    """Raise what is to be said of it: UsageError for no checkpoint at all, CheckpointError for another policy's."""
    if found.refusal is not None:
        usage = found.kind in (Kind.ADAPTER, Kind.ARTIFACT)  # they exist, but are no source
        raise (UsageError if usage else CheckpointError)(found.refusal)


def _statistics_file(path: str | Path) -> Statistics:
    if not Path(path).is_file():
        raise UsageError(f"--statistics {no_such(Path(path), 'file')}; give a run's dataset_statistics.json")
    return read_statistics_file(Path(path))


def _local(path: Path) -> Path:
    """An adapter's directory, here or fetched from the Hub."""
    if path.is_dir():
        return path
    try:
        repository = repository_or_refusal(str(path))
    except UsageError as error:
        raise UsageError(f"--adapter {error}") from error
    return fetch(repository, HUB_FILES)


def _download(source: str) -> Path:
    repository = repository_or_refusal(source, f" nor {RANDOM}NAME")
    refuse(recognise_names(source, names(repository)))
    return fetch(repository, HUB_FILES)
