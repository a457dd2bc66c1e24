"""Packed layers in, fused layers out: which products become one, and which kernel runs each.

Knows names of linear layers and kernels. Knows nothing of files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from edge_vla.errors import UsageError
from edge_vla.model.decoder import RMSNorm
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.cpu.fused import FusedDecoder, FusedLayer, Products
from edge_vla.runtime.cpu.native.decoder import NativeDecoder, NativeLayer, layer_fits
from edge_vla.runtime.cpu.native.layout import IN_PREFILL, NEVER, Format, fits_rounded
from edge_vla.runtime.cpu.native.library import fast, library
from edge_vla.runtime.cpu.native.product import NativeHead
from edge_vla.runtime.kernels import AUTO, NATIVE, NATIVE_INT8, pick
from edge_vla.spec import PolicySpec

TOGETHER: Final[Mapping[str, tuple[str, ...]]] = {  # products that share their input
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
TEXT_ROWS: Final = 32  # of a prompt beside the image, about: how many rows the probe takes a prefill to have


CpuDecoder = FusedDecoder | NativeDecoder


class Assembly:
    """Makes layers, and remembers which kernels it chose: scheme -> kernel name -> shapes (N, K).

    `formats` are those of all layers' linears: where C can run all of them, and this machine is fast at it or `want`
    names it, the decoder is native; else each product has a kernel of its own.
    """

    def __init__(
        self,
        spec: PolicySpec,
        dtype: torch.dtype,
        device: torch.device,
        formats: Iterable[Mapping[str, Format]],
        want: str = AUTO,
    ) -> None:
        self.spec, self.dtype, self.device, self.want = spec, dtype, device, want
        self.native = want in (AUTO, NATIVE, NATIVE_INT8) and self._runs_native(formats)
        if want in (NATIVE, NATIVE_INT8) and not self.native:
            raise UsageError(
                f"kernel {want} needs a C compiler, bf16 on the CPU, and formats bf16, int8, w8a8, int4 or narrower "
                "only, in groups that C's lines hold"
            )
        self.rows = spec.patches + TEXT_ROWS
        self.chosen: dict[str, dict[str, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))

    def layer(
        self, index: int, linears: Mapping[str, PackedWeight], norms: Mapping[str, Tensor]
    ) -> FusedLayer | NativeLayer:
        if self.native:
            return self._native_layer(linears, norms)
        products = {name: self._product([linears[part] for part in parts]) for name, parts in TOGETHER.items()}
        first, second = self.norm(norms["input_layernorm.weight"]), self.norm(norms["post_attention_layernorm.weight"])
        return FusedLayer(self.spec.decoder, index, products, (first, second))

    def decoder(self, layers: Sequence[FusedLayer | NativeLayer], norm: Tensor) -> CpuDecoder:
        """Of the layers that this assembly made."""
        spec = self.spec.decoder
        if self.native:
            return NativeDecoder(spec, [layer for layer in layers if isinstance(layer, NativeLayer)], norm)
        return FusedDecoder(spec, [layer for layer in layers if isinstance(layer, FusedLayer)], self.norm(norm)).eval()

    def head(self, actions: Tensor) -> NativeHead | None:
        """The product by the head's action rows, if the decoder is native."""
        shape = (actions.shape[0], actions.shape[1])
        return NativeHead(PackedWeight(Scheme.BF16, shape, None, actions, None)) if self.native else None

    def norm(self, weight: Tensor) -> RMSNorm:
        # A copy: the tensor read from a file keeps the whole file mapped.
        norm = RMSNorm(0, self.spec.decoder.norm_eps)
        norm.weight = nn.Parameter(weight.to(self.device, self.dtype, copy=True), requires_grad=False)
        return norm

    def kernels(self) -> dict[str, str]:
        """Kernel by scheme; where shapes differ in theirs, each with its shapes."""
        return {scheme: _words(names) for scheme, names in self.chosen.items()}

    def _runs_native(self, formats: Iterable[Mapping[str, Format]]) -> bool:
        if self.dtype != torch.bfloat16 or self.device.type != "cpu":
            return False
        able = fast() if self.want == AUTO else library() is not None
        return able and all(layer_fits(self.spec.decoder, _together(linears)) for linears in formats)

    def _native_layer(self, linears: Mapping[str, PackedWeight], norms: Mapping[str, Tensor]) -> NativeLayer:
        products = _together(linears)
        rounds = IN_PREFILL if self.want == NATIVE_INT8 else NEVER
        for packed in linears.values():
            name = self.want if rounds and fits_rounded(packed) and packed.scheme is not Scheme.W8A8 else NATIVE
            self.chosen[packed.scheme.value][name].add(packed.shape)
        whole = {name: [one] if (one := fused(parts)) is not None else parts for name, parts in products.items()}
        return NativeLayer(whole, (norms["input_layernorm.weight"], norms["post_attention_layernorm.weight"]), rounds)

    def _product(self, parts: Sequence[PackedWeight]) -> nn.Module:
        whole = fused(parts)
        made: list[nn.Module] = []
        for packed in [whole] if whole is not None else parts:
            kernel = pick(packed, self.dtype, self.device, self.want, self.rows)
            self.chosen[packed.scheme.value][kernel.name].add(packed.shape)
            product = kernel(packed, self.dtype, self.device)
            assert isinstance(product, nn.Module), "a kernel is a module"
            made.append(product)
        return made[0] if len(made) == 1 else Products(made)


def _together(linears: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [linears[part] for part in parts] for name, parts in TOGETHER.items()}


def fused(parts: Sequence[PackedWeight]) -> PackedWeight | None:
    """One weight whose outputs are those of `parts` in order; None if their formats differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if len({(part.scheme, part.group, part.shape[1], part.codes.dtype) for part in parts}) > 1:
        return None
    scales = [part.scales for part in parts if part.scales is not None]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    outer = sum(part.shape[0] for part in parts)
    return PackedWeight(
        scheme=first.scheme,
        shape=(outer, first.shape[1]),
        group=first.group,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat(scales) if scales else None,
        zeros=torch.cat(zeros) if zeros else None,
    )


def _words(names: Mapping[str, set[tuple[int, int]]]) -> str:
    if len(names) == 1:
        return next(iter(names))
    listed = (
        f"{name} ({', '.join(f'{outer}x{inner}' for outer, inner in sorted(shapes))})" for name, shapes in names.items()
    )
    return "; ".join(sorted(listed))
