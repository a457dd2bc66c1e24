"""Linears that share an input, each quantised as the recipe says. Knows which method does what; nothing of layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edge_vla.export.formats import LayerFormats
from edge_vla.export.gptq import clipped, factorise, gptq
from edge_vla.export.recipe import Recipe
from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.kernels import pick


def quantise_together(
    recipe: Recipe, weights: Mapping[str, Tensor], hessian: Tensor, formats: LayerFormats, what: str
) -> dict[str, PackedWeight]:
    """`weights` (N, K) that share an input with this (K, K) Hessian; `what` names them in warnings and errors."""
    rounded = any(formats[name].scheme is not Scheme.BF16 for name in weights)
    factor = factorise(hessian, what) if rounded and recipe.compensated else None
    packed = {}
    for name, weight in weights.items():
        form = formats[name]
        if form.scheme is Scheme.BF16:
            packed[name] = quantise(weight, *form)
        elif factor is not None:
            packed[name] = gptq(weight, factor, *form)
        elif recipe.method == "awq":
            packed[name] = clipped(weight, hessian.diagonal(), *form)
        else:
            packed[name] = quantise(weight, *form)
    return packed


def stand_in(packed: PackedWeight, dtype: torch.dtype) -> Tensor | nn.Module:
    """What calibration goes on with: the rounded weight, or the kernel's module where that rounds its input too."""
    if packed.scheme is not Scheme.W8A8:
        return dequantise(packed, dtype)
    cpu = torch.device("cpu")
    product = pick(packed, dtype, cpu)(packed, dtype, cpu)
    assert isinstance(product, nn.Module), "a kernel is a module"
    return product
