"""Make compressed_tensors.safetensors: small matrices as compressed-tensors packs them, and what it unpacks them to.

Needs compressed-tensors 0.20.0 (with torch, transformers, loguru) in an environment of their own; run by hand:

    python -m tests.golden.make_compressed_tensors

`CASE/weight_packed` and so on are the checkpoint's tensors, `CASE/weight` (outputs, inputs) the weight. The metadata
holds each case's `quantization_config`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.compressors.pack_quantized.base import (  # type: ignore[import-not-found]
    PackedQuantizationCompressor,
)
from compressed_tensors.quantization import (  # type: ignore[import-not-found]
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
)
from safetensors.torch import save_file
from torch import Tensor

OUT: Final = Path(__file__).with_name("compressed_tensors.safetensors")
OUT_FEATURES: Final = 16  # 0.20.0 cannot unpack the zeros of 8
IN_FEATURES: Final = 64
GROUP: Final = 32
# name -> bits, symmetric, group, type of the scales
CASES: Final = {
    "int4": (4, True, GROUP, torch.bfloat16),
    "int8": (8, True, None, torch.bfloat16),
    "asymmetric": (4, False, GROUP, torch.float16),
}


def make(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    bits, symmetric, group, dtype = CASES[name]
    torch.manual_seed(len(name))
    weight = torch.randn(OUT_FEATURES, IN_FEATURES).to(dtype)
    count = 1 if group is None else IN_FEATURES // group
    low = -(2 ** (bits - 1))
    state = {
        "weight": weight,
        "weight_scale": ((0.5 + torch.rand(OUT_FEATURES, count)) * float(weight.abs().max()) / -low).to(dtype),
        "weight_zero_point": torch.zeros(OUT_FEATURES, count, dtype=torch.int8),
    }
    if not symmetric:
        state["weight_zero_point"] = torch.randint(low, -low, (OUT_FEATURES, count), dtype=torch.int8)
    strategy = "channel" if group is None else "group"
    arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    packed = PackedQuantizationCompressor.compress(state, scheme)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", quantization_status="compressed"
    )
    unpacked = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    return {**packed, "weight": unpacked}, config.model_dump(mode="json")


def main() -> None:
    tensors: dict[str, Tensor] = {}
    configs: dict[str, str] = {}
    for name in CASES:
        made, config = make(name)
        tensors |= {f"{name}/{part}": tensor.contiguous() for part, tensor in made.items()}
        configs[name] = json.dumps(config)
    save_file(tensors, OUT, metadata=configs)


if __name__ == "__main__":
    main()
