"""Many int8 rows times an int4 weight on int8 tensor cores: int8 arithmetic from weights stored in 4 bits.

A nibble is a small int8, so widening it rounds nothing; each group's integer sum gets the group's own scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_vla.quant import GRIDS, Scheme, unpack_nibbles
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, Int8Rows, restore_int4


def reference(x: Int8Rows, weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """x (M, K) -> (M, N) in `dtype`: exact integer sums in each group, float32 between groups, in their order."""
    packed = restore_int4(weight)
    levels = GRIDS[Scheme.INT4].levels(unpack_nibbles(packed.codes))
    total = x.scales.new_zeros(x.codes.shape[0], levels.shape[0])
    for index, start in enumerate(range(0, levels.shape[1], weight.group)):
        inputs = slice(start, start + weight.group)
        # float64, because a GPU may multiply float32 in fewer bits than these sums have
        sums = (x.codes[:, inputs].double() @ levels[:, inputs].double().T).float()
        total = total + sums * weight.scales[index].float()
    return (total * x.scales[:, None]).to(dtype)
