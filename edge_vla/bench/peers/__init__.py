"""Peers: other engines on the same weights, measured in the same run.

Each is a transformers LlamaForCausalLM, plain or quantised by another package, between this package's preprocessing,
towers, projector and action tokens. A peer runs in a process of its own, with its own Python if it needs one; nothing
here imports a peer's packages before `load`. Torch's default number of threads is used, as by every system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_vla.bench.peers.packages import lacking, versions
from edge_vla.errors import BackendError, UsageError
from edge_vla.suggestions import choose

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edge_vla.bench.peers.policy import PeerPolicy
    from edge_vla.checkpoint import Arithmetic, Checkpoint
    from edge_vla.openvla.evaluation import Preprocess

__all__ = ["PEERS", "Engine", "lacking", "load", "require", "versions"]


@dataclass(frozen=True)
class Engine:
    """`decoder` makes its LlamaForCausalLM, with or without a folder of calibration frames."""

    description: str
    decoder: Callable[[Checkpoint, torch.dtype, torch.device, Path | None], nn.Module]
    calibrates: bool = False
    packages: tuple[str, ...] = ("transformers",)

    def described(self, calibration: Path | None) -> str:
        """The description, with what it was calibrated on."""
        if not self.calibrates:
            return self.description
        return f"{self.description}; calibrated on {'synthetic images' if calibration is None else calibration.name}"


def load(
    name: str,
    source: str | Path,
    adapters: Sequence[Path] = (),
    merge_arithmetic: Arithmetic = "fp32",
    device: str = "auto",
    dtype: str = "bf16",
    calibration: Path | None = None,
    prompt: str | None = None,
    statistics: str | None = None,
    preprocess: Preprocess = "none",
) -> PeerPolicy:
    """A peer by its name in `PEERS`, on a checkpoint. `calibration` is a folder of frames for those that calibrate.

    Raises UsageError for an unknown name, BackendError with the command that installs a missing package.
    """
    if name not in PEERS:
        raise UsageError(f"--peer {name}: {choose(name, PEERS)}")
    import torch

    from edge_vla.bench.peers.policy import PeerPolicy
    from edge_vla.checkpoint import open_checkpoint
    from edge_vla.runtime.loading import DTYPES

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    checkpoint = open_checkpoint(source, adapters, merge_arithmetic, prompt=prompt, statistics=statistics)
    llama = PEERS[name].decoder(checkpoint, DTYPES[dtype], place, calibration)
    return PeerPolicy(checkpoint, llama, name, DTYPES[dtype], place, preprocess)


def require(peers: Sequence[tuple[str, str | None]]) -> None:
    """BackendError unless the packages of every requested peer are in its Python: this one's, or the one named."""
    for name, python in peers:
        for package in PEERS[name].packages:
            if command := lacking(package, python):
                where = "this Python" if python is None else python
                raise BackendError(f"--peer {name} needs {package}, which {where} does not have: {command}")


def _plain(
    attention: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, _: Path | None
) -> nn.Module:
    from edge_vla.bench.peers.llama import llama

    return llama(checkpoint, dtype, device, attention)


def _bitsandbytes(
    bits: int, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, _: Path | None
) -> nn.Module:
    from edge_vla.bench.peers import bnb
    from edge_vla.bench.peers.llama import llama

    return llama(checkpoint, dtype, device, linear=bnb.LINEARS[bits]())


def _gptqmodel(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, calibration: Path | None) -> nn.Module:
    from edge_vla.bench.peers.gptq import gptq

    return gptq(checkpoint, dtype, device, calibration)


PEERS: Final[Mapping[str, Engine]] = {
    "hf-bf16": Engine(
        "transformers' Llama in bfloat16, eager attention, growing KV cache: the structure that OpenVLA shipped with. "
        "A bare greedy loop spares it the overhead of `generate`",
        partial(_plain, "eager"),
    ),
    "hf-sdpa": Engine(
        "the same with torch's fused attention, as most users run it: the same GEMMs, at least as fast",
        partial(_plain, "sdpa"),
    ),
    "bnb-nf4": Engine(
        "hf-sdpa with the decoder's matrices as bitsandbytes NF4, computed in bfloat16 without double quantisation: "
        "as in OpenVLA's fine-tuning script (its `load_in_4bit` gives FP4 in float32, slower and coarser)",
        partial(_bitsandbytes, 4),
        packages=("transformers", "bitsandbytes"),
    ),
    "bnb-int8": Engine(
        "hf-sdpa with the decoder's matrices as bitsandbytes LLM.int8, outliers beyond 6 in 16 bits: "
        "as `load_in_8bit` gives it",
        partial(_bitsandbytes, 8),
        packages=("transformers", "bitsandbytes"),
    ),
    "gptqmodel": Engine(
        "hf-sdpa with the decoder's matrices as gptqmodel's GPTQ, 4 bits in groups of 128, on the kernel it selects",
        _gptqmodel,
        calibrates=True,
        packages=("transformers", "gptqmodel"),
    ),
}
