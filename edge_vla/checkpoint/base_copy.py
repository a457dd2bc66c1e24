"""A copy of a base's tensor that an adapter carries: the base's but for rounding, or another base's.

peft puts copies of embeddings and head into the file when these are adapted, in the type they had in training, and
loads them over the base's. So the copy is what is merged into, where it is the base's; where it is not, the adapter
belongs to another base.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

ROUNDINGS: Final = (torch.float32, torch.bfloat16, torch.float16)  # types that a base is trained in


def difference(copy: Tensor, base: Tensor) -> str | None:
    """How `copy` differs from `base`, of one shape, by more than rounding to float types; None if not.

    Either may have been rounded: the copy in training and again when it was saved, or the base when it was saved.
    """
    if any(_same(copy, base, dtype) for dtype in ROUNDINGS):
        return None
    carried, own = copy.float(), base.float()
    step = max(torch.finfo(tensor.dtype).eps for tensor in (copy, base))
    apart = (carried - own).abs().nan_to_num(nan=torch.inf)
    count = int((apart > step * own.abs() + torch.finfo(torch.float16).smallest_normal * step).sum())
    return (
        f"{count or 'some'} of {base.numel()} values differ by more than rounding, the furthest by "
        f"{float(apart.max()):.2g} where the base's largest is {float(own.abs().max()):.2g}"
    )


def _same(copy: Tensor, base: Tensor, trained: torch.dtype) -> bool:
    return (
        torch.equal(base.to(trained).to(copy.dtype), copy)
        or torch.equal(copy.to(trained).to(base.dtype), base)
        or torch.equal(copy.to(trained), base.to(trained))
    )
