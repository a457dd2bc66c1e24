"""The demo policy with outliers planted in it: the same function, in numbers that round as a large Llama's do.

The demo policy has none, but Llamas have. Three kinds are planted:

- `loud`: a few channels of every norm's weight times 128, and the columns that read them over 128. Powers of two move
  no bit of a bf16 product, so the reference is the demo policy bit for bit. Inputs of linears then have channels of
  several hundred times the median: SmoothQuant (arXiv:2211.10438) reports about a hundred in large models, Sun et al.
  (arXiv:2402.17762) more than a thousand in LLaMA2-7B's two massive channels, though on few tokens. What is harder here
  than there: columns that read a loud channel are small, so that weights alone lose too; int8 is the row beside.
- `turned`: the stream turned into the principal axes of its own rows, which gathers in few channels what orthogonal
  matrices can, in the norms' inputs and outputs, while the columns that read them keep their size.
- `massive`: as Sun et al. describe LLaMA2-7B: one channel of the first row is 2500 (the median is 0.3), in every layer,
  and its keys and values hang on that channel alone. The quietest axis of `turned` gives its place; the keys and values
  stay what they were, so the policy stays what it was but for that axis.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from edge_vla.calibration.sequences import embed
from edge_vla.calibration.stream import forward_, load_layer
from edge_vla.checkpoint import Checkpoint, open_checkpoint
from edge_vla.checkpoint.folder import INDEX
from edge_vla.checkpoint.keys import EMBEDDINGS, HEAD, layer_prefix
from edge_vla.checkpoint.rotation import FINAL_NORM, READERS
from edge_vla.data import Frame
from edge_vla.spec import PolicySpec

Weights = dict[str, Tensor]
Plant = Callable[[Weights, Checkpoint, Sequence[Frame]], Weights]

LOUD: Final = (3, 77, 140, 200, 231)  # channels, drawn once
RATIO: Final = 128.0
AXIS: Final = 0  # of `turned`, the quietest
MASSIVE: Final = 2500.0
KEYS_VALUES: Final = ("self_attn.k_proj", "self_attn.v_proj")
FRAMES: Final = 32  # whose rows are looked at


def loud(weights: Weights, checkpoint: Checkpoint, frames: Sequence[Frame]) -> Weights:  # noqa: ARG001
    factors = torch.ones(checkpoint.config.spec.decoder.width)
    factors[list(LOUD)] = RATIO
    for norm, linears in readers(checkpoint.config.spec):
        weights[norm] = (weights[norm] * factors).to(weights[norm].dtype)
        for name in linears:
            weights[name] = (weights[name] / factors).to(weights[name].dtype)
    return weights


def turned(weights: Weights, checkpoint: Checkpoint, frames: Sequence[Frame]) -> Weights:
    axes = torch.linalg.eigh(moments(checkpoint, frames).double()).eigenvectors
    spec, types = checkpoint.config.spec, {name: weight.dtype for name, weight in weights.items()}
    double = {name: weight.double() for name, weight in weights.items()}
    norms = [*readers(spec), (FINAL_NORM, [HEAD])]
    for norm, linears in norms:
        for name in linears:
            double[name] = double[name] * double[norm] @ axes
        double[norm] = torch.ones_like(double[norm])
    double[EMBEDDINGS] = double[EMBEDDINGS] @ axes
    last = f"projector.fc{len(spec.projector_widths) - 1}"
    double[f"{last}.bias"] = double[f"{last}.bias"] @ axes
    layers = [layer_prefix(index) for index in range(spec.decoder.layers)]
    for name in (last, *(layer + end for layer in layers for end in ("self_attn.o_proj", "mlp.down_proj"))):
        double[f"{name}.weight"] = axes.T @ double[f"{name}.weight"]
    return {name: weight.to(types[name]) for name, weight in double.items()}


def massive(weights: Weights, checkpoint: Checkpoint, frames: Sequence[Frame]) -> Weights:
    spec, types = checkpoint.config.spec, {name: weight.dtype for name, weight in weights.items()}
    double = {name: weight.double() for name, weight in turned(weights, checkpoint, frames).items()}
    kept = first_row(double, spec)
    last = f"projector.fc{len(spec.projector_widths) - 1}"
    double[f"{last}.weight"][AXIS], double[f"{last}.bias"][AXIS] = 0, 0
    double[HEAD][:, AXIS], double[EMBEDDINGS][:, AXIS] = 0, 0
    double[EMBEDDINGS][spec.decoder.bos, AXIS] = MASSIVE
    for index in range(spec.decoder.layers):
        prefix = layer_prefix(index)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            double[f"{prefix}{name}.weight"][AXIS] = 0
        for name in ("self_attn.q_proj", *KEYS_VALUES, "mlp.gate_proj", "mlp.up_proj"):
            double[f"{prefix}{name}.weight"][:, AXIS] = 0
        read = first_row(double, spec)[index].read  # of a row that the layers before have moved
        for name, result in zip(KEYS_VALUES, kept[index].results, strict=True):
            weight = double[f"{prefix}{name}.weight"]
            weight[:, AXIS] = (result - weight @ read) / read[AXIS]
    return {name: weight.to(types[name]) for name, weight in double.items()}


@dataclass(frozen=True)
class FirstRow:
    """Of one layer: what k_proj and v_proj read (width,), and what they make of it."""

    read: Tensor
    results: tuple[Tensor, ...]


def first_row(double: Weights, spec: PolicySpec) -> list[FirstRow]:
    """The row of beginning-of-sequence through every layer. It sees itself alone: attention returns its values."""
    x, found = double[EMBEDDINGS][spec.decoder.bos], list[FirstRow]()
    for index in range(spec.decoder.layers):

        def linear(name: str, given: Tensor, prefix: str = layer_prefix(index)) -> Tensor:
            return double[f"{prefix}{name}.weight"] @ given

        read = normalised(x, spec)
        found.append(FirstRow(read, tuple(linear(name, read) for name in KEYS_VALUES)))
        x = x + linear("self_attn.o_proj", found[-1].results[1])
        middle = normalised(x, spec)
        gated = torch.nn.functional.silu(linear("mlp.gate_proj", middle)) * linear("mlp.up_proj", middle)
        x = x + linear("mlp.down_proj", gated)
    return found


def normalised(x: Tensor, spec: PolicySpec) -> Tensor:
    """RMSNorm with a weight of ones."""
    return x / (x.square().mean() + spec.decoder.norm_eps).sqrt()


PLANTS: Final[Mapping[str, Plant]] = {"loud": loud, "turned": turned, "massive": massive}


def readers(spec: PolicySpec) -> list[tuple[str, list[str]]]:
    """Every layer's norms, each with the weights that read it."""
    return [
        (prefix + norm, [f"{prefix}{name}.weight" for name in names])
        for prefix in map(layer_prefix, range(spec.decoder.layers))
        for norm, names in READERS.items()
    ]


def moments(checkpoint: Checkpoint, frames: Sequence[Frame]) -> Tensor:
    """(width, width): of the stream's rows after each layer, each of length one."""
    spec = checkpoint.config.spec.decoder
    rows, total = embed(checkpoint, frames[:: -(-len(frames) // FRAMES)], torch.float32), torch.zeros(spec.width, 1)
    for index in range(spec.layers):
        forward_(load_layer(checkpoint.tensors, spec, index, torch.float32), rows)
        for same in rows:
            unit = torch.nn.functional.normalize(same.hidden.flatten(0, 1), dim=-1)
            total = total + unit.T @ unit
    return total


def loudness(checkpoint: Checkpoint, frames: Sequence[Frame]) -> tuple[float, float]:
    """The loudest channel over the median, in the stream and in what q_proj reads: the largest over the layers."""
    spec = checkpoint.config.spec.decoder
    rows, found = embed(checkpoint, frames[:: -(-len(frames) // FRAMES)], torch.float32), [(0.0, 0.0)]
    for index in range(spec.layers):
        layer = load_layer(checkpoint.tensors, spec, index, torch.float32)
        stream = torch.cat([same.hidden.flatten(0, 1) for same in rows])
        with torch.inference_mode():
            read = layer.input_layernorm(stream)
        found.append((float(stream.abs().max() / stream.abs().median()), float(read.abs().max() / read.abs().median())))
        forward_(layer, rows)
    return max(one for one, _ in found), max(one for _, one in found)


def plant(kind: str, base: Path, out: Path, frames: Sequence[Frame]) -> Path:
    """A checkpoint beside `base` with outliers in it; what is there already stays."""
    if out.exists():
        return out
    checkpoint = open_checkpoint(base)
    weights = {name: checkpoint.tensors.load(name) for name in checkpoint.tensors.names()}
    changed = PLANTS[kind](weights, checkpoint, frames)
    partial = out.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    save_file(
        {name: weight.contiguous() for name, weight in changed.items()}, partial / "model.safetensors", {"format": "pt"}
    )
    partial.replace(out)
    return out
