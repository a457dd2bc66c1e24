"""How the GPU engine computes: with which backend's kernels, in which type, with activations of how many bits.

One table of kernels, filled once from the backend's name: the rest of the engine cannot tell which backend it has, and
nothing falls back from one to the other. Knows names; knows nothing of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from edge_vla.runtime.gpu import CHAIN, PERSISTENT, ROUNDED
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.kernels import (
    activations,
    decode_pass,
    head,
    layer_norm,
    pass_attention,
    prefill_attention,
    quantise_rows,
    rms_norm,
    w4a8,
    w4a16,
    w8,
    w8a8,
    w16,
)
from edge_vla.runtime.gpu.kernels.weights import Rows

Activations = Literal["16", "8"]  # bits of the rows that a gemm multiplies by 4- and 8-bit weights
Steps = Literal["auto", "persistent", "chain"]  # how a pass of few rows is launched: see `steps`


def named(kernel: str) -> tuple[Activations, Steps]:
    """What one of the `--kernel` names of this engine, or `auto`, asks for."""
    rounds = kernel.removesuffix(PERSISTENT).removesuffix(CHAIN) == ROUNDED
    steps: Steps = "persistent" if kernel.endswith(PERSISTENT) else "chain" if kernel.endswith(CHAIN) else "auto"
    return "8" if rounds else "16", steps


@dataclass(frozen=True)
class Kernels:
    """Each as its module describes it. A `gemv` takes at most GEMV_ROWS rows."""

    choose: Callable[..., None]
    decode_pass: Callable[..., Tensor]
    gelu: Callable[..., Rows]
    layer_norm: Callable[..., tuple[Tensor, Rows]]
    pass_attention: Callable[..., Tensor]
    prefill_attention: Callable[..., Tensor]
    quantise_rows: Callable[..., Rows]
    rms_norm: Callable[..., tuple[Tensor, Rows]]
    swiglu: Callable[..., Rows]
    w16_gemv: Callable[..., Tensor]
    w4a16_gemv: Callable[..., Tensor]
    w8a16_gemv: Callable[..., Tensor]
    w4a16_gemm: Callable[..., Tensor]
    w8a16_gemm: Callable[..., Tensor]
    w4a8_gemm: Callable[..., Tensor]
    w8a8_gemm: Callable[..., Tensor]


def kernels(backend: Backend) -> Kernels:
    """Every kernel of one backend; a module names its references and its kernels alike."""

    def of(module: ModuleType, suffix: str = "") -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(module, ("reference" if backend == "reference" else "kernel") + suffix)
        return found

    return Kernels(
        choose=of(head),
        decode_pass=of(decode_pass),
        gelu=of(activations, "_gelu"),
        layer_norm=of(layer_norm),
        pass_attention=of(pass_attention),
        prefill_attention=of(prefill_attention),
        quantise_rows=of(quantise_rows),
        rms_norm=of(rms_norm),
        swiglu=of(activations, "_swiglu"),
        w16_gemv=of(w16, "_gemv"),
        w4a16_gemv=of(w4a16, "_gemv"),
        w8a16_gemv=of(w8, "_a16_gemv"),
        w4a16_gemm=of(w4a16, "_gemm"),
        w8a16_gemm=of(w8, "_a16_gemm"),
        w4a8_gemm=of(w4a8),
        w8a8_gemm=of(w8a8),
    )


@dataclass(frozen=True)
class GpuConfig:
    kernels: Kernels
    dtype: torch.dtype
    activations: Activations
