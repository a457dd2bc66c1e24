"""What was read of a source, what was not and why, and every doubt: the written record of one opening.

Made when a source is opened, carried by its `Checkpoint`, printed by `inspect` and before an export.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from edge_vla.checkpoint.folder import ADAPTER_CONFIG, CONFIG, INDEX, STATISTICS, TOKENIZER, Use, unread
from edge_vla.checkpoint.kinds import Kind, Recognised
from edge_vla.checkpoint.lora import Adapter
from edge_vla.checkpoint.quantised import SETTINGS, DequantisedTensors
from edge_vla.checkpoint.tensors import SafetensorsDirectory
from edge_vla.openvla.config import PREPROCESSOR, PROCESSOR, PolicyConfig, read_json, read_statistics_file
from edge_vla.openvla.statistics import Statistics
from edge_vla.openvla.tokenizer import ADDED_TOKENS, SPECIAL_TOKENS, overridden
from edge_vla.openvla.tokenizer import CONFIG as TOKENIZER_CONFIG

RUN_NAME: Final = re.compile(r".+\+.+\+b\d+\+lr-.+")  # as OpenVLA's finetune.py makes it; others may be alike by chance
BASE_APPLIES: Final = "; the base's data sets apply"
GENERATION: Final = "generation_config.json"
# Settings of `generate` that change greedy decoding, and the value at which each does nothing.
GENERATE: Final[Mapping[str, object]] = {
    "num_beams": 1,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "min_length": 0,
    **dict.fromkeys(
        (
            "bad_words_ids",
            "begin_suppress_tokens",
            "exponential_decay_length_penalty",
            "force_words_ids",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "min_new_tokens",
            "sequence_bias",
            "suppress_tokens",
        )
    ),
}


@dataclass(frozen=True)
class Reading:
    """`sign` is what the kind was seen by; `prompt` and `statistics` say which apply and why; a doubt is one line."""

    kind: Kind
    sign: str
    read: tuple[Use, ...] = ()
    ignored: tuple[Use, ...] = ()
    merged: tuple[str, ...] = ()
    prompt: str = ""
    statistics: str = ""
    doubts: tuple[str, ...] = ()
    refusal: str | None = None  # why it is not opened, and what to do

    def to_json(self) -> dict[str, object]:
        uses = {"read": self.read, "ignored": self.ignored}
        return {
            "kind": self.kind.value,
            "sign": self.sign,
            **{name: [{"file": use.name, "why": use.why} for use in found] for name, found in uses.items()},
            "merged": list(self.merged),
            "prompt": self.prompt,
            "statistics": self.statistics,
            "doubts": list(self.doubts),
            "refusal": self.refusal,
        }


@dataclass(frozen=True)
class StatisticsFound:
    """Statistics that replace the base's: where they came from, in words, and doubts about them."""

    statistics: Statistics | None
    why: str
    doubts: tuple[str, ...] = ()


def read_folder(
    directory: Path, recognised: Recognised, tensors: SafetensorsDirectory | DequantisedTensors, config: PolicyConfig
) -> Reading:
    """The record of a folder that was opened, before adapters and what the user said in its place."""
    stored = tensors.stored if isinstance(tensors, DequantisedTensors) else tensors
    own = (directory / STATISTICS).exists()
    why = "replaces config.json's statistics" if own else ""
    read = [
        *_read_weights(stored),
        Use(CONFIG, "dimensions" if own else "dimensions, and the statistics: there is no dataset_statistics.json"),
        *_tokenizer_files(directory),
        *([Use(STATISTICS, why)] if own else []),
        *_image_settings(directory),
    ]
    ignored = [*unread(directory, frozenset(use.name for use in read))]
    ignored += [Use(TOKENIZER, line) for line in overridden(directory)]
    if stored.ignored:
        ignored.append(Use(f"{len(stored.ignored)} tensors (rotary_emb.*)", "every Llama computes them anew"))
    return Reading(
        kind=recognised.kind,
        sign=", ".join([recognised.sign, *_history(directory, tensors)]),
        read=tuple(read),
        ignored=tuple(ignored),
        prompt=f"{config.prompt.value}: the prompt of this language backbone (config.json, llm_backbone_id)",
        statistics=f"{STATISTICS} of this folder" if own else f"norm_stats of {CONFIG}",
        doubts=(
            *recognised.doubts,
            *_quantisation_doubts(directory, tensors),
            *statistics_doubts(config.statistics),
            *_generation_doubts(directory),
            *_vocabulary_doubts(directory, config),
            *_image_doubts(directory),
        ),
    )


def read_refused(directory: Path, recognised: Recognised) -> Reading:
    """The record of a folder that `recognise` refuses: what it is, and for an adapter whose statistics it has."""
    adapter = recognised.kind is Kind.ADAPTER
    found = find_run_statistics(directory) if adapter else StatisticsFound(None, "")
    settings = read_json(directory / ADAPTER_CONFIG) if adapter else {}
    read = [Use(ADAPTER_CONFIG, f"of a base called {settings.get('base_model_name_or_path')!r}")] if adapter else []
    return Reading(
        kind=recognised.kind,
        sign=recognised.sign,
        read=tuple(read),
        statistics=found.why,
        doubts=(*recognised.doubts, *found.doubts),
        refusal=recognised.refusal,
    )


def find_run_statistics(adapter: Path) -> StatisticsFound:
    """Statistics of the run that an adapter comes from.

    Beside it, else in the folder around it, else in the folder of the same run's name under a neighbouring root, as
    OpenVLA's finetune.py keeps `adapter-tmp/RUN` and `runs/RUN`. Files that differ decide nothing.
    """
    folder = adapter.resolve()
    if (folder / STATISTICS).exists():
        return StatisticsFound(read_statistics_file(folder / STATISTICS), f"{STATISTICS} beside the adapter {adapter}")
    runs = [folder.parent / STATISTICS]
    if not runs[0].exists():
        runs = []
    if not runs and RUN_NAME.fullmatch(folder.name):
        patterns = (f"*/{_escaped(folder.name)}/{STATISTICS}", f"*/{_escaped(folder.name)}--*_chkpt/{STATISTICS}")
        runs = sorted(path for pattern in patterns for path in folder.parent.parent.glob(pattern))
    alike = {hashlib.sha256(path.read_bytes()).hexdigest() for path in runs}
    if len(alike) == 1:
        return StatisticsFound(
            read_statistics_file(runs[0]), f"{runs[0]}, of the run that the adapter {adapter} belongs to"
        )
    if runs:
        doubt = f"{', '.join(map(str, runs[:3]))} differ and may each belong to {adapter}: choose with --statistics"
    else:
        doubt = f"{adapter} has no {STATISTICS}, and none was found in its run's folder"
    return StatisticsFound(None, "", (doubt + BASE_APPLIES,))


def merged_already(directory: Path, adapter: Adapter) -> Iterator[str]:
    """One line if a folder may be the merged run of that same adapter: finetune.py of OpenVLA saves both.

    A fine-tuned folder's config.json names what it was tuned from. An adapter of that name was not trained on it.
    """
    if not directory.is_dir() or not (directory / STATISTICS).exists():
        return
    tuned_from, trained_on = read_json(directory / CONFIG).get("_name_or_path"), adapter.config.base_model_name_or_path
    run = re.sub(r"--\d+_chkpt$", "", directory.resolve().name)
    same_run = RUN_NAME.fullmatch(run) is not None and adapter.directory.resolve().name == run
    if same_run or (isinstance(tuned_from, str) and tuned_from and tuned_from == trained_on):
        yield (
            f"{directory} was fine-tuned from {tuned_from!r}, on which {adapter} was trained: if they are of one run, "
            f"it is merged there already, and twice is too much; leave out --adapter, or give {trained_on!r} as SRC"
        )


def statistics_doubts(statistics: Statistics) -> Iterator[str]:
    for reason in statistics.unsound.values():
        yield f"{reason}: left out"
    for reason in statistics.strays.values():
        yield f"{reason}: ignored"
    for key, one in statistics.items():
        if turned := [str(i) for i, moves in enumerate(one.mask) if moves and one.q01[i] > one.q99[i]]:
            yield (
                f"data set {key!r} has q01 above q99 in dimension {', '.join(turned)}: actions are un-normalised "
                "backwards there, as OpenVLA would; are they in each other's place?"
            )


def _escaped(name: str) -> str:
    """For `Path.glob`: a run's name may hold brackets."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _read_weights(stored: SafetensorsDirectory) -> Iterator[Use]:
    yield Use(stored.weights.path.name, stored.weights.why)
    if stored.weights.sharded:
        for path in stored.files:
            yield Use(str(path.relative_to(stored.directory)), f"{INDEX} names it")


def _tokenizer_files(directory: Path) -> Iterator[Use]:
    yield Use(TOKENIZER, "the prompt's tokens")
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS):
        if (directory / name).is_file() and (directory / TOKENIZER_CONFIG).is_file():
            yield Use(name, "special and added tokens, and for Llama's class how a prompt begins and ends")


def _image_settings(directory: Path) -> Iterator[Use]:
    if (directory / PREPROCESSOR).exists():
        yield Use(PREPROCESSOR, "how an image is resized and normalised")
    elif (directory / PROCESSOR).exists() and "image_processor" in read_json(directory / PROCESSOR):
        yield Use(PROCESSOR, "how an image is resized and normalised, where transformers 5 saves it")


def _image_doubts(directory: Path) -> Iterator[str]:
    if not (directory / PREPROCESSOR).exists() or not (directory / PROCESSOR).exists():
        return
    own, shared = read_json(directory / PREPROCESSOR), _object(directory / PROCESSOR).get("image_processor")
    names = ("tvf_normalize_params", "tvf_resize_params", "image_resize_strategy")
    if isinstance(shared, Mapping) and any(own.get(name) != shared.get(name) for name in names):
        yield (
            f"{PREPROCESSOR} and {PROCESSOR} describe different images: the first is used, as transformers 4.40 does; "
            "transformers 5 uses the second"
        )


def _history(directory: Path, tensors: SafetensorsDirectory | DequantisedTensors) -> Iterator[str]:
    """What was done to the policy before it was saved here."""
    origin = read_json(directory / CONFIG).get("_name_or_path")
    if isinstance(origin, str) and origin:
        tuned = "fine-tuned or merged" if (directory / STATISTICS).exists() else "saved"
        yield f"{tuned} from {origin!r}"
    if isinstance(tensors, DequantisedTensors) and tensors.matrices:
        yield f"{tensors.matrices} matrices stored as {tensors.layout}"


def _quantisation_doubts(directory: Path, tensors: SafetensorsDirectory | DequantisedTensors) -> Iterator[str]:
    if isinstance(tensors, DequantisedTensors) and not tensors.matrices:
        yield (
            f"{CONFIG} says {tensors.layout.name} (quantization_config), but no tensor is: read as it is stored, where "
            "transformers would look for quantised tensors"
        )
    if isinstance(tensors, SafetensorsDirectory) and (directory / SETTINGS).exists():
        yield f"{SETTINGS} is there, but no tensor is quantised: ignored, as transformers does"


def _generation_doubts(directory: Path) -> Iterator[str]:
    settings = _object(directory / GENERATION)
    for name, idle in GENERATE.items():
        if settings.get(name) not in (None, idle, []):
            yield (
                f"{GENERATION} sets {name} to {settings[name]!r:.40}, which transformers' generate obeys: "
                "here the best action token is taken"
            )


def _vocabulary_doubts(directory: Path, config: PolicyConfig) -> Iterator[str]:
    """Training counts action tokens down from the tokenizer's size, inference from config.json's."""
    text, end = (directory / TOKENIZER).read_text(encoding="utf-8"), config.spec.action.end
    size = Tokenizer.from_str(text).get_vocab_size(with_added_tokens=False)
    if size != end:
        yield (
            f"{TOKENIZER} has {size} pieces, so training put the action tokens below {size}; {CONFIG} puts them below "
            f"{end} (vocab_size less pad_to_multiple_of), which is what OpenVLA's predict_action and this read"
        )
    raw = read_json(directory / CONFIG)
    text_config = raw.get("text_config")
    ends = text_config.get("eos_token_id") if isinstance(text_config, Mapping) else None
    if isinstance(ends, list) and len(ends) > 1:
        yield f"{CONFIG} lists {len(ends)} ends of sequence: only the first, {ends[0]}, ends --head full"


def _object(path: Path) -> Mapping[str, object]:
    """A file that matters only if it is there and sound."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, Mapping) else {}
