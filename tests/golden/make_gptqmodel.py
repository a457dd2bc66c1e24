"""Make gptqmodel.safetensors: small matrices as gptqmodel stores them, and what it dequantises them to.

Needs gptqmodel 7.6.0 and torch in an environment of their own; run by hand:

    GPTQMODEL_CPU_WORKERS=2 python -m tests.golden.make_gptqmodel

`CASE/qweight`, `qzeros`, `scales` and `g_idx` are the checkpoint's tensors, `CASE/weight` (outputs, inputs) the float16
weight. The metadata holds each case's `quantization_config`. The last case has zeros that carry when one is added.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from gptqmodel import QuantizeConfig  # type: ignore[import-not-found]
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # type: ignore[import-not-found]
from gptqmodel.utils import model as conversions  # type: ignore[import-not-found]
from safetensors.torch import save_file
from torch import Tensor, nn

OUT: Final = Path(__file__).with_name("gptqmodel.safetensors")
OUT_FEATURES: Final = 8
IN_FEATURES: Final = 64
GROUP: Final = 32
# name -> bits, symmetric, inputs out of order, version, group
CASES: Final = {
    "int4": (4, True, False, "gptq", GROUP),
    "int4-v2": (4, True, False, "gptq_v2", GROUP),
    "int8": (8, True, False, "gptq", -1),
    "asymmetric-act-order": (4, False, True, "gptq", GROUP),
    "carry": (4, False, False, "gptq", GROUP),
}


def make(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    bits, symmetric, act_order, version, group = CASES[name]
    torch.manual_seed(len(name))
    count, top = 1 if group == -1 else IN_FEATURES // group, 2**bits - 1
    linear = nn.Linear(IN_FEATURES, OUT_FEATURES, bias=False).half()
    g_idx = torch.arange(IN_FEATURES) // (IN_FEATURES // count)
    if act_order:
        g_idx = g_idx[torch.randperm(IN_FEATURES)]
    reach = linear.weight.data.float().abs().max() / 2 ** (bits - 1)
    scales = (reach * (0.5 + torch.rand(OUT_FEATURES, count))).half()
    zeros = (
        torch.full((OUT_FEATURES, count), (top + 1) // 2) if symmetric else torch.randint(1, top, (OUT_FEATURES, count))
    )
    if name == "carry":
        zeros[0] = 0  # stored as -1, which is 15
    module = TorchLinear(bits, group, symmetric, act_order, IN_FEATURES, OUT_FEATURES, bias=False)
    module.pack_original(linear=linear, scales=scales, zeros=zeros, g_idx=g_idx.int())
    config = QuantizeConfig(bits=bits, group_size=group, sym=symmetric, desc_act=act_order)
    if version == "gptq":
        conversions.convert_gptq_v2_to_v1_format_module(module, config)
    parts = {part: getattr(module, part).clone() for part in ("qweight", "qzeros", "scales", "g_idx")}
    if version == "gptq":
        conversions.convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    module.post_init()
    weight = module.eval().dequantize_weight().T.contiguous()
    settings = {"bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order, "quant_method": "gptq"}
    return {**parts, "weight": weight.detach().clone()}, {**settings, "checkpoint_format": version}


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
