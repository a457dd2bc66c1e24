"""A checkpoint's decoder as transformers' own LlamaForCausalLM, each weight streamed into an empty model.

`linear` makes what replaces the decoder layers' matrices. Peak memory is the finished model and one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edge_vla.bench.peers.packages import required
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX
from edge_vla.spec import DecoderSpec

PREFIX = DECODER_PREFIX.removesuffix("model.")

# (out_features, in_features) on the CPU -> the layer that takes its place, on the device.
Linear = Callable[[Tensor, torch.device], nn.Module]


def llama(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "sdpa",
    linear: Linear | None = None,
) -> nn.Module:
    """LlamaForCausalLM in `dtype` with the checkpoint's weights, adapters merged. `attention` is eager or sdpa."""
    transformers = required("transformers")
    spec = checkpoint.config.spec.decoder
    config = llama_config(spec, attention)
    linears = tuple(f".{name}.weight" for name in spec.linears())
    with torch.device("meta"):
        model: nn.Module = transformers.LlamaForCausalLM(config)
    for name in [name for name, _ in model.named_parameters()]:
        weight = checkpoint.tensors.load(PREFIX + name).to(dtype)
        if linear is not None and name.endswith(linears):
            model.set_submodule(name.removesuffix(".weight"), linear(weight, device))
        else:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, nn.Parameter(weight.to(device), requires_grad=False))
    # Its frequencies are computed, not stored, and on the meta device they were not computed.
    rotary = type(model.get_submodule("model.rotary_emb"))(config)
    model.set_submodule("model.rotary_emb", rotary.to(device))
    return model.eval().requires_grad_(False)


def llama_config(spec: DecoderSpec, attention: str) -> Any:
    """`spec` as a transformers LlamaConfig."""
    return required("transformers").LlamaConfig(
        vocab_size=spec.vocab_rows,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_theta=spec.rope_theta,
        bos_token_id=spec.bos,
        eos_token_id=spec.eos,
        attn_implementation=attention,
    )
