"""The rounding-noise floor: the reference beside itself with rounding-sized noise after every block and layer.

A harmless change of kernel, batch or device rounds differently everywhere. This does the same on purpose, so that a
difference between two policies can be distinguished from rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edge_vla.errors import UsageError
from edge_vla.runtime.network import Network

ROUNDING = 2.0**-8  # one bf16 step, relative


@contextmanager
def rounding_noise(network: Network, seed: int) -> Iterator[None]:
    """While open, the output of every tower block and decoder layer of `network` is moved by up to one rounding step.

    UsageError for a network that runs in other operators than torch's.
    """
    if not isinstance(network.vision, nn.Module) or not isinstance(network.decoder, nn.Module):
        raise UsageError("rounding noise needs a policy in torch's own operators: use --vision torch --kernel torch")
    generator = torch.Generator().manual_seed(seed)

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        return add_rounding_noise(output, generator)

    blocks = [module for name, module in network.vision.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    layers = network.decoder.get_submodule("layers").children()
    handles = [module.register_forward_hook(hook) for module in [*blocks, *layers]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_rounding_noise(values: Tensor, generator: torch.Generator) -> Tensor:
    """Each value up or down by at most a step, in float32: in bf16 itself, 1 + noise could only round down."""
    noise = torch.rand(values.shape, generator=generator) * 2 - 1
    return (values.float() * (1 + ROUNDING * noise.to(values.device))).to(values.dtype)
