"""The decoder as gptqmodel quantises and runs it: GPTQ, 4 bits, its own choice of kernel.

gptqmodel calibrates from token ids, and most rows of an OpenVLA prefill are image embeddings. So each row of the
calibration frames' images gets an id of its own behind the vocabulary, in a decoder written for that purpose: the
layers see the inputs that they will see later, and gptqmodel runs unchanged. Afterwards embeddings and head are the
checkpoint's again.

It needs an environment of its own, because it needs an older numpy: `pip install torch==2.13.0 gptqmodel==7.6.0`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from edge_vla.bench.peers.llama import llama
from edge_vla.bench.peers.packages import required
from edge_vla.bench.peers.policy import PeerPolicy
from edge_vla.checkpoint import Checkpoint
from edge_vla.data import read_frames, synthetic_image
from edge_vla.errors import UsageError

BITS: Final = 4
GROUPS: Final = (128, 64, 32)  # the first that divides every matrix's in_features; 128 is gptqmodel's default
FRAMES: Final = 128
INSTRUCTION: Final = "pick up the object"


def gptq(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, calibration: Path | None) -> nn.Module:
    """LlamaForCausalLM with gptqmodel's layers. `calibration` is a folder of frames; None: synthetic images.

    Writes a 16-bit and a quantised decoder to the temporary directory while it works.
    """
    # gptqmodel 7 needs two workers of a pool that has one on a small machine, and fails there.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    gptqmodel = required("gptqmodel")
    with tempfile.TemporaryDirectory(prefix="edge-vla-gptq-") as scratch:
        plain, packed = Path(scratch) / "plain", Path(scratch) / "packed"
        ids = _write_plain(checkpoint, device, calibration, plain)
        config = gptqmodel.QuantizeConfig(
            bits=BITS, group_size=_group(checkpoint), offload_to_disk_path=str(Path(scratch) / "offload")
        )
        model = gptqmodel.GPTQModel.load(str(plain), config)
        model.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], batch_size=1)
        model.save(str(packed))
        del model
        quantised: nn.Module = gptqmodel.GPTQModel.load(str(packed), device=str(device), dtype=dtype).model
    for path in ("model.embed_tokens", "lm_head"):
        weight = checkpoint.tensors.load(f"language_model.{path}.weight").to(device, dtype)
        quantised.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
    return quantised.eval().requires_grad_(False)


def _write_plain(checkpoint: Checkpoint, device: torch.device, calibration: Path | None, out: Path) -> list[Tensor]:
    """Write the bfloat16 decoder with the frames' image rows behind its vocabulary. Returns ids (1, rows) by frame."""
    decoder: Any = llama(checkpoint, torch.bfloat16, device)
    peer = PeerPolicy(checkpoint, decoder, "plain", torch.bfloat16, device)
    images, ids = list[Tensor](), list[Tensor]()
    free = checkpoint.config.spec.decoder.vocab_rows
    for image, instruction, key in _frames(checkpoint, calibration):
        tokens = peer.act(image, instruction, key).tokens
        images.append(peer.embed_image(image)[0].cpu())
        prompt, image_ids = peer.prompter(instruction), range(free, free + len(images[-1]))
        ids.append(torch.tensor([[prompt[0], *image_ids, *prompt[1:], *tokens[:-1]]]))
        free += len(image_ids)
    rows = torch.cat(images)
    # The head never scores an image row: its rows there are zeros, cut off again afterwards.
    for module, behind in ((decoder.model.embed_tokens, rows), (decoder.lm_head, torch.zeros_like(rows))):
        module.weight = nn.Parameter(torch.cat([module.weight.cpu(), behind]), requires_grad=False)
    decoder.config.vocab_size = free
    decoder.save_pretrained(out)
    (out / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    pad = peer.prompter.tokenizer.id_to_token(checkpoint.config.spec.decoder.eos)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
    (out / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return ids


def _frames(checkpoint: Checkpoint, calibration: Path | None) -> Sequence[tuple[Any, str, str | None]]:
    """Image, instruction and statistics key of each calibration frame."""
    if calibration is not None:
        frames = read_frames(calibration)
        spread = frames[:: max(1, len(frames) // FRAMES)][:FRAMES]
        return [(frame.open(), frame.instruction, frame.unnorm_key) for frame in spread]
    size, key = checkpoint.config.spec.image_size, next(iter(checkpoint.config.statistics))
    return [(synthetic_image(seed, size), INSTRUCTION, key) for seed in range(FRAMES)]


def _group(checkpoint: Checkpoint) -> int:
    widths = {in_features for _, in_features in checkpoint.config.spec.decoder.linears().values()}
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    raise UsageError(f"gptqmodel needs in_features that {GROUPS[-1]} divides, got {sorted(widths)}")
