"""The optimiser: Muon for the matrices inside the network, Adam for everything else.

Muon replaces a matrix's momentum by the nearest orthogonal matrix (a few Newton-Schulz steps), which needs about half
as many frames here as Adam alone. Knows parameters and gradients, no schedules.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

MOMENTUM: Final = 0.95
BETAS: Final = (0.9, 0.95)
EPSILON: Final = 1e-8
_QUINTIC: Final = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) with rows <= columns -> roughly the nearest matrices with singular values 1."""
    a, b, c = _QUINTIC
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = x.float()
    return out


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes it: linears of blocks, projector and decoder; not embeddings, heads, convolutions."""
    inside = "blocks." in name or "projector." in name or "layers." in name
    return inside and "lora_" not in name and parameter.ndim == 2


class Muon:
    """State is plain tensors, in parameter order, so that a saved run continues exactly."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> None:
        self.named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.weight_decay = weight_decay
        self.momentum = {n: torch.zeros_like(p) for n, p in self.named if is_matrix(n, p)}
        self.first = {n: torch.zeros_like(p) for n, p in self.named if not is_matrix(n, p)}
        self.second = {n: torch.zeros_like(p) for n, p in self.named if not is_matrix(n, p)}
        self.steps = 0

    def state(self) -> dict[str, object]:
        return {"momentum": self.momentum, "first": self.first, "second": self.second, "steps": self.steps}

    @torch.no_grad()
    def restore(
        self, momentum: dict[str, Tensor], first: dict[str, Tensor], second: dict[str, Tensor], steps: int
    ) -> None:
        for mine, saved in ((self.momentum, momentum), (self.first, first), (self.second, second)):
            for name, tensor in mine.items():
                tensor.copy_(saved[name])
        self.steps = steps

    @torch.no_grad()
    def step(self, matrix_rate: float, rate: float) -> None:
        """One update from the gradients, which are cleared."""
        self.steps += 1
        groups: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor, bool]]] = defaultdict(list)
        for name, parameter in self.named:
            gradient = parameter.grad
            if gradient is None:
                continue
            if name in self.momentum:
                momentum = self.momentum[name].lerp_(gradient, 1 - MOMENTUM)
                ahead = gradient.lerp(momentum, MOMENTUM)
                parts = 3 if name.endswith("qkv.weight") else 1
                for target, update in zip(parameter.chunk(parts), ahead.chunk(parts), strict=True):
                    tall = update.shape[0] > update.shape[1]
                    update = update.mT if tall else update
                    groups[(update.shape[0], update.shape[1])].append((nn.Parameter(target), update, tall))
            else:
                self._adam(name, parameter, gradient, rate)
            parameter.grad = None
        for (low, high), members in groups.items():
            updates = orthogonal(torch.stack([update for _, update, _ in members]))
            for (target, _, tall), update in zip(members, updates, strict=True):
                scale = (high / low) ** 0.5 if tall else 1.0
                target.data.mul_(1 - matrix_rate * self.weight_decay)
                target.data.add_(update.mT if tall else update, alpha=-matrix_rate * scale)

    def _adam(self, name: str, parameter: nn.Parameter, gradient: Tensor, rate: float) -> None:
        first = self.first[name].lerp_(gradient, 1 - BETAS[0])
        second = self.second[name].lerp_(gradient.square(), 1 - BETAS[1])
        first = first / (1 - BETAS[0] ** self.steps)
        second = second / (1 - BETAS[1] ** self.steps)
        parameter.data.addcdiv_(first, second.sqrt().add_(EPSILON), value=-rate)
