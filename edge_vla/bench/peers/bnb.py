"""Linear layers by bitsandbytes, one at a time: each weight is quantised as it arrives and its 16 bits are freed.

Both as OpenVLA's own scripts use them: 4 bits are NF4 computed in bfloat16 without double quantisation, 8 bits are
LLM.int8 with transformers' outlier threshold. The head stays in bfloat16, as transformers leaves it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.bench.peers.llama import Linear
from edge_vla.bench.peers.packages import required

OUTLIER: Final = 6.0  # transformers' default: activations beyond it are multiplied in 16 bits


def nf4() -> Linear:
    """Linear4bit, NF4 in blocks of bitsandbytes' own size."""
    bnb = _modules()

    def linear(weight: Tensor, device: torch.device) -> nn.Module:
        out_features, in_features = weight.shape
        module: nn.Module = bnb.Linear4bit(
            in_features,
            out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=False,
            quant_type="nf4",
            device="meta",
        )
        quantised = bnb.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=module
        )
        module.weight = quantised.to(device)
        return module.eval()

    return linear


def int8() -> Linear:
    """Linear8bitLt: rows of weights and rows of activations in 8 bits, outlying columns in 16."""
    bnb = _modules()
    # It warns at every GEMM of a bfloat16 input: a line a layer and token, which costs time.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)

    def linear(weight: Tensor, device: torch.device) -> nn.Module:
        out_features, in_features = weight.shape
        module: nn.Module = bnb.Linear8bitLt(
            in_features, out_features, bias=False, has_fp16_weights=False, threshold=OUTLIER, device="meta"
        )
        module.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
        return module.eval()

    return linear


def _modules() -> ModuleType:
    nn_modules: ModuleType = required("bitsandbytes").nn
    return nn_modules


LINEARS: Final[Mapping[int, Callable[[], Linear]]] = {4: nf4, 8: int8}
