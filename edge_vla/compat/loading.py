"""`from_pretrained` as scripts call it: every argument honoured, without effect, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from edge_vla.artifact import MANIFEST, TOKENIZER, Artifact
from edge_vla.checkpoint import open_checkpoint
from edge_vla.compat.arguments import refuse_others, truth
from edge_vla.compat.model import Model
from edge_vla.compat.processor import Processor
from edge_vla.errors import UsageError
from edge_vla.openvla import PolicyConfig, Prompter
from edge_vla.runtime import load as load_policy

DTYPES: Final[Mapping[object, str]] = {
    **{torch.bfloat16: "bf16", torch.float32: "fp32", None: "bf16", "auto": "bf16"},
    **{"bfloat16": "bf16", "float32": "fp32", "torch.bfloat16": "bf16", "torch.float32": "fp32"},
}
BITS: Final = {"load_in_4bit": 4, "load_in_8bit": 8}


def load(
    path: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "bf16", **options: Any
) -> tuple[Model, Processor]:
    """Model and processor of one policy; `path` is an artifact or a checkpoint, as for `edge_vla.load`.

    `options` are those of `from_pretrained`. `torch_dtype`, `device_map` and `revision` are honoured; those that choose
    an attention kernel or how files are read change no action; UsageError for the rest. `load_in_4bit` and
    `load_in_8bit` are met by an artifact of these bits.
    """
    source = with_revision(path, options.pop("revision", None))
    kind = options.pop("torch_dtype", None)
    wanted = _dtype(dtype if kind is None else kind)
    place = _device(device, options.pop("device_map", None))
    if Path(source).is_dir():
        options.pop("local_files_only", None)
    for name, bits in BITS.items():
        if truth(options.get(name)) and _bits(source) == bits:
            del options[name]
    refuse_others("load", options)
    policy = load_policy(source, place, dtype=wanted)
    decoder = policy.config.spec.decoder
    return Model(policy), Processor(policy.prompter, policy.config.image, decoder.eos)


class AutoModelForVision2Seq:
    @staticmethod
    def from_pretrained(path: str | Path, **options: Any) -> Model:
        """The model alone, with the options of `load`."""
        return load(path, **options)[0]


class AutoProcessor:
    @staticmethod
    def from_pretrained(path: str | Path, **options: Any) -> Processor:
        """The processor alone, which reads no weights."""
        source = with_revision(path, options.pop("revision", None))
        if Path(source).is_dir():
            options.pop("local_files_only", None)
        if options.get("use_fast") is False:
            raise UsageError("use_fast=False: the slow tokenizer reads tokenizer.model, this one tokenizer.json")
        refuse_others("load", options)
        config, text = _tokenizer(source)
        prompter = Prompter(text, config.prompt, config.spec.decoder)
        return Processor(prompter, config.image, config.spec.decoder.eos)


def with_revision(path: str | Path, revision: str | None) -> str | Path:
    """`org/name@revision`; a directory has none but `main`."""
    if revision in (None, "main"):
        return path
    if Path(path).exists() or "@" in str(path):
        raise UsageError(f"revision={revision}: {path} has no revisions; check it out there, or give a Hub id")
    return f"{path}@{revision}"


def _tokenizer(source: str | Path) -> tuple[PolicyConfig, str]:
    if (Path(source) / MANIFEST).exists():
        artifact = Artifact(Path(source))
        return artifact.manifest.config, artifact.text(TOKENIZER)
    checkpoint = open_checkpoint(source)
    return checkpoint.config, checkpoint.tokenizer_json


def _dtype(dtype: object) -> str:
    name = str(dtype) if dtype in DTYPES.values() else DTYPES.get(dtype)
    if name is None:
        raise UsageError(f"torch_dtype={dtype}: a policy computes in torch.bfloat16 or torch.float32")
    return name


def _device(device: Any, device_map: Any) -> str:
    """`auto`, `cpu` or `cuda`."""
    if isinstance(device_map, Mapping):
        if len(device_map) != 1:
            raise UsageError(f"device_map over {len(device_map)} modules: a policy is on one device; pass 'cuda'")
        device_map = next(iter(device_map.values()))
    asked = device if device_map is None else device_map
    if asked == "auto":
        return "auto"
    try:
        place = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {asked!r}: choose auto, cpu or cuda") from error
    if place.index not in (None, 0):
        raise UsageError(f"device {asked}: a policy runs on the first GPU; choose it with CUDA_VISIBLE_DEVICES")
    return place.type


def _bits(source: str | Path) -> int | None:
    """Of an artifact's recipe; None for a checkpoint."""
    return Artifact(Path(source)).manifest.recipe.bits if (Path(source) / MANIFEST).exists() else None
