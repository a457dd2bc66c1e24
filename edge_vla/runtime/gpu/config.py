"""How the engine computes: whose kernels, in which type, and how finely a prefill's activations are rounded.

One table of kernels, filled once from the backend's name: the rest of the engine cannot tell which one it has, and
nothing falls back from one to the other. Knows names; knows nothing of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.kernels import (
    attention,
    gelu,
    head,
    layer_norm,
    quantise_rows,
    rms_norm,
    rotary,
    swiglu,
    w4a8_gemm,
    w4a16_gemm,
    w4a16_gemv,
    w8a8_gemm,
    w8a16_gemm,
    w8a16_gemv,
)
from edge_vla.runtime.gpu.kernels.head import Choice
from edge_vla.runtime.gpu.kernels.weights import Int8Rows

Activations = Literal["16", "8"]  # bits of what is multiplied with 4- and 8-bit weights, where rows are many


@dataclass(frozen=True)
class Kernels:
    """Each as the module of its name describes it; `_int8` hands its rows on rounded."""

    attention: Callable[..., Tensor]
    choose: Callable[..., Choice]
    gelu: Callable[..., Tensor]
    gelu_int8: Callable[..., Int8Rows]
    layer_norm: Callable[..., tuple[Tensor, Tensor]]
    layer_norm_int8: Callable[..., tuple[Tensor, Int8Rows]]
    quantise: Callable[..., Int8Rows]
    rms_norm: Callable[..., tuple[Tensor, Tensor]]
    rms_norm_int8: Callable[..., tuple[Tensor, Int8Rows]]
    rotary: Callable[..., Tensor]
    swiglu: Callable[..., Tensor]
    swiglu_int8: Callable[..., Int8Rows]
    w4a16_gemv: Callable[..., Tensor]
    w8a16_gemv: Callable[..., Tensor]
    w4a16_gemm: Callable[..., Tensor]
    w8a16_gemm: Callable[..., Tensor]
    w4a8_gemm: Callable[..., Tensor]
    w8a8_gemm: Callable[..., Tensor]


def kernels(backend: Backend) -> Kernels:
    """Every kernel of one backend; each module names its two alike."""

    def of(module: ModuleType, then: str = "") -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(module, ("reference" if backend == "reference" else "kernel") + then)
        return found

    return Kernels(
        attention=of(attention),
        choose=of(head),
        gelu=of(gelu),
        gelu_int8=of(gelu, "_int8"),
        layer_norm=of(layer_norm),
        layer_norm_int8=of(layer_norm, "_int8"),
        quantise=of(quantise_rows),
        rms_norm=of(rms_norm),
        rms_norm_int8=of(rms_norm, "_int8"),
        rotary=of(rotary),
        swiglu=of(swiglu),
        swiglu_int8=of(swiglu, "_int8"),
        w4a16_gemv=of(w4a16_gemv),
        w8a16_gemv=of(w8a16_gemv),
        w4a16_gemm=of(w4a16_gemm),
        w8a16_gemm=of(w8a16_gemm),
        w4a8_gemm=of(w4a8_gemm),
        w8a8_gemm=of(w8a8_gemm),
    )


@dataclass(frozen=True)
class GpuConfig:
    kernels: Kernels
    dtype: torch.dtype
    activations: Activations
