"""Make bitsandbytes.safetensors: small matrices as bitsandbytes stores them in 4 bits, and what it makes of them.

Needs bitsandbytes 0.50.2 and torch; runs on the CPU, by hand:

    python -m tests.golden.make_bitsandbytes

`CASE/weight` and so on are the checkpoint's tensors, `CASE/dequantised` (outputs, inputs) the weight. It is dequantised
as one long row: the CPU kernel of 0.50.2 begins a block with each row, which its quantiser and its CUDA kernel do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # type: ignore[import-not-found,unused-ignore]
from safetensors.torch import save_file
from torch import Tensor

OUT: Final = Path(__file__).with_name("bitsandbytes.safetensors")
# name -> kind, double quantisation, block, type, (outputs, inputs)
CASES: Final = {
    "nf4": ("nf4", False, 64, torch.bfloat16, (8, 96)),
    "nf4-double": ("nf4", True, 32, torch.bfloat16, (129, 64)),  # 258 blocks, so two blocks of absmax
    "nf4-half": ("nf4", True, 64, torch.float16, (6, 80)),  # the last block is cut
    "fp4": ("fp4", False, 64, torch.float32, (4, 64)),
}


def make(name: str) -> dict[str, Tensor]:
    kind, double, block, dtype, shape = CASES[name]
    torch.manual_seed(len(name))
    weight = torch.randn(shape).to(dtype)
    data, state = quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=double)
    parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    state.shape = torch.Size([1, weight.numel()])
    return {"weight": data, **parts, "dequantised": dequantize_4bit(data, state).view(shape)}


def main() -> None:
    tensors: dict[str, Tensor] = {}
    for name in CASES:
        tensors |= {f"{name}/{part}": tensor.contiguous() for part, tensor in make(name).items()}
    save_file(tensors, OUT)


if __name__ == "__main__":
    main()
