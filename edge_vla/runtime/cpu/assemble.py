"""Packed layers in, runnable layers out, and which kernel runs each product.

Knows names of linear layers and kernels. Knows nothing of files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from edge_vla.errors import UsageError
from edge_vla.model.decoder import RMSNorm
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.cpu.fused import FusedDecoder, FusedLayer, Products
from edge_vla.runtime.cpu.native.decoder import NativeDecoder, NativeLayer, layer_fits
from edge_vla.runtime.cpu.native.gemm import NativeHead
from edge_vla.runtime.cpu.native.layout import Format, fits_int, zero_point_of
from edge_vla.runtime.cpu.native.library import library, require_library, wanted, why_none
from edge_vla.runtime.cpu.native.structs import Int8Inputs
from edge_vla.runtime.cpu.native.targets import SCALAR, split
from edge_vla.runtime.kernels import AUTO, AUTO_BF16, NATIVE, NATIVE_INT8, TORCH, TORCH_BF16, pick
from edge_vla.runtime.parts import FUSED, fuse
from edge_vla.spec import PolicySpec

TEXT_ROWS: Final = 32  # of a typical prompt beside the image: the probe times a prefill of so many rows more

CpuDecoder = FusedDecoder | NativeDecoder
Part = TypeVar("Part", PackedWeight, Format)


class Assembly:
    """Makes layers, and records which kernels it chose: scheme -> kernel name -> shapes (N, K).

    `formats` are those of all layers' linears. The decoder runs in C where C has all of them and either this machine
    is fast at it or `want` names it (`native@avx2`: and what C was compiled for); else each product has a kernel.
    `int8_prefill`: whether `auto` may round a prefill's rows to 8 bits in C.
    """

    def __init__(
        self,
        spec: PolicySpec,
        dtype: torch.dtype,
        device: torch.device,
        formats: Iterable[Mapping[str, Format]],
        want: str = AUTO,
        *,
        int8_prefill: bool = False,
    ) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self.want, name = split(want)
        self.int8_prefill = self.want == NATIVE_INT8 or (self.want == AUTO and int8_prefill)
        if name is not None and self.want not in (NATIVE, NATIVE_INT8):
            raise UsageError(f"kernel {want}: only {NATIVE} and {NATIVE_INT8} have targets, as in {NATIVE}@{name}")
        c = self.want in (AUTO, AUTO_BF16, NATIVE, NATIVE_INT8)
        self.target = wanted(name) if c and dtype == torch.bfloat16 and device.type == "cpu" else None
        self.native = c and self._runs_native(formats)
        if self.want in (NATIVE, NATIVE_INT8) and not self.native:
            raise UsageError(
                f"kernel {want} needs bf16 on the CPU, and formats bf16, int8, w8a8, int4 or narrower only, in groups "
                "that C can read" + ("" if self.target else f"; {why_none()}")
            )
        self.rows = spec.patches + TEXT_ROWS
        self.chosen: dict[str, dict[str, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))

    def layer(
        self, index: int, linears: Mapping[str, PackedWeight], norms: Mapping[str, Tensor]
    ) -> FusedLayer | NativeLayer:
        if self.native:
            return self._native_layer(linears, norms)
        products = {name: self._product([linears[part] for part in parts]) for name, parts in FUSED.items()}
        first, second = self.norm(norms["input_layernorm.weight"]), self.norm(norms["post_attention_layernorm.weight"])
        return FusedLayer(self.spec.decoder, index, products, (first, second))

    def decoder(self, layers: Sequence[FusedLayer | NativeLayer], norm: Tensor) -> CpuDecoder:
        """Of the layers that this assembly made."""
        spec = self.spec.decoder
        if self.native:
            native = [layer for layer in layers if isinstance(layer, NativeLayer)]
            return NativeDecoder(spec, native, norm, library(self.target))
        return FusedDecoder(spec, [layer for layer in layers if isinstance(layer, FusedLayer)], self.norm(norm)).eval()

    def head(self, actions: Tensor) -> NativeHead | None:
        """The product by the head's action rows, if the decoder is native."""
        shape = (actions.shape[0], actions.shape[1])
        packed = PackedWeight(Scheme.BF16, shape, None, actions, None)
        return NativeHead(packed, library(self.target)) if self.native else None

    def norm(self, weight: Tensor) -> RMSNorm:
        # A copy: the tensor read from a file keeps the whole file mapped.
        norm = RMSNorm(0, self.spec.decoder.norm_eps)
        norm.weight = nn.Parameter(weight.to(self.device, self.dtype, copy=True), requires_grad=False)
        return norm

    def check_kernel(self) -> None:
        """UsageError if `want` names a kernel and no weight has it."""
        chosen = self.want in (AUTO, AUTO_BF16, TORCH, TORCH_BF16)  # a rule, not a kernel
        if not chosen and self.want not in set().union(*self.chosen.values()):
            raise UsageError(
                f"--kernel {self.want}: no weight of this artifact, of formats {sorted(self.chosen)}, has such a kernel"
            )

    def kernels(self) -> dict[str, str]:
        """Kernel by scheme, C with its target; where shapes differ in theirs, each with its shapes."""
        at = f"@{self.target.name}" if self.native and self.target else ""
        return {scheme: _words(names, at) for scheme, names in self.chosen.items()}

    def _runs_native(self, formats: Iterable[Mapping[str, Format]]) -> bool:
        slow = self.target == SCALAR and self.want in (AUTO, AUTO_BF16)
        if self.target is None or slow:
            return False
        self.zero_point = zero_point_of(require_library(self.target))
        return all(layer_fits(self.spec.decoder, _together(linears)) for linears in formats)

    def _native_layer(self, linears: Mapping[str, PackedWeight], norms: Mapping[str, Tensor]) -> NativeLayer:
        products = _together(linears)
        int8_inputs = Int8Inputs.IN_PREFILL if self.int8_prefill else Int8Inputs.NEVER
        for packed in linears.values():
            rounded = self.int8_prefill and fits_int(packed) and packed.scheme is not Scheme.W8A8
            name = NATIVE_INT8 if rounded else NATIVE
            self.chosen[packed.scheme.value][name].add(packed.shape)
        whole = {name: [one] if (one := fuse(parts)) is not None else parts for name, parts in products.items()}
        pair = norms["input_layernorm.weight"], norms["post_attention_layernorm.weight"]
        return NativeLayer(whole, pair, self.zero_point, int8_inputs)

    def _product(self, parts: Sequence[PackedWeight]) -> nn.Module:
        whole = fuse(parts)
        made: list[nn.Module] = []
        for packed in [whole] if whole is not None else parts:
            kernel = pick(packed, self.dtype, self.device, self.want, self.rows)
            self.chosen[packed.scheme.value][kernel.name].add(packed.shape)
            product = kernel(packed, self.dtype, self.device)
            assert isinstance(product, nn.Module), "a kernel is a module"
            made.append(product)
        return made[0] if len(made) == 1 else Products(made)


def _together(linears: Mapping[str, Part]) -> dict[str, list[Part]]:
    return {name: [linears[part] for part in parts] for name, parts in FUSED.items()}


def _words(names: Mapping[str, set[tuple[int, int]]], at: str) -> str:
    if len(names) == 1:
        return next(iter(names)) + at
    listed = (f"{name}{at} ({', '.join(f'{n}x{k}' for n, k in sorted(shapes))})" for name, shapes in names.items())
    return "; ".join(sorted(listed))
