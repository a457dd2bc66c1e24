"""What the linears of towers and projector read on calibration images: the largest values, and a sample of rows.

Computed in float32 by the plain network. Knows nothing of number formats.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.runtime.vision.towers import TorchVision

Hook = Callable[[nn.Module, tuple[Tensor, ...]], "tuple[Tensor] | None"]
"""Before a module's forward; what it returns replaces the inputs."""

ROWS: Final = 1024  # of each linear that are kept, over all images


@dataclass(frozen=True)
class InputRows:
    """`sample` (rows, K), float32, drawn evenly from all rows; `largest` (K,), over every row."""

    sample: Tensor
    largest: Tensor


def linears(network: TorchVision) -> dict[str, nn.Linear]:
    """By name, in the order of the network."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}


def input_rows(network: TorchVision, images: Iterable[Tensor], count: int) -> dict[str, InputRows]:
    """Run `count` images (1, 3 x towers, H, W) through the network and keep what each linear reads."""
    found, keep = dict[str, InputRows](), max(1, -(-ROWS // count))

    def reader(name: str) -> Hook:
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))

        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            rows = inputs[0].flatten(0, -2)
            drawn = rows[torch.randperm(len(rows), generator=draw)[:keep].to(rows.device)].float()
            largest, before = rows.abs().amax(0).float(), found.get(name)
            if before is not None:
                drawn, largest = torch.cat([before.sample, drawn]), torch.maximum(before.largest, largest)
            found[name] = InputRows(drawn, largest)

        return read

    with hooked({module: reader(name) for name, module in linears(network).items()}), torch.inference_mode():
        for image in images:
            network(image)
    return found


@contextmanager
def hooked(hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
