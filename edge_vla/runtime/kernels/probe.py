"""Whether a gemm over the dequantised weight beats the packed product, by layer shape.

Measured once on this machine, then kept in the user's cache. Knows times only: both products are right.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch
from torch import Tensor

from edge_vla.quant import PackedWeight
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.kernels.gemm import GEMV_ROWS, GemmInt4, GemmInt8
from edge_vla.runtime.store import processor, remember, remembered

TABLE = "prefill.json"
ROUNDS = 3
LONG_S = 2.0  # rounds that take longer are not repeated

_known: dict[str, str] = {}


def gemm_pays(kernel: type[GemmInt4] | type[GemmInt8], packed: PackedWeight, rows: int, device: torch.device) -> bool:
    """Whether the kernel's gemm beats its gemv at this many rows."""
    if rows <= GEMV_ROWS:
        return False
    key = _key(packed, rows)
    answer = _known.get(key) or remembered(TABLE).get(key)
    if answer not in ("gemv", "gemm"):
        product = kernel(packed, torch.bfloat16, device)
        x = torch.randn(rows, packed.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
        with torch.inference_mode():
            gemv, gemm = _fastest(product.gemv, product.gemm, x)
        answer = "gemm" if gemm < gemv else "gemv"
        remember(TABLE, key, answer)
    _known[key] = answer
    return answer == "gemm"


def _fastest(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """Best processor time of each in seconds, measured in turns so that other programs hit both alike."""
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for i, product in enumerate((first, second)):
            started = time.process_time()
            product(x)
            best[i] = min(best[i], time.process_time() - started)
        if sum(best) > LONG_S:
            break
    return best[0], best[1]


def _key(packed: PackedWeight, rows: int) -> str:
    features = hashlib.sha256(processor().encode()).hexdigest()[:8]
    where = f"{processor()[:40]} {features}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    how = "native" if library() else "torch"
    return f"{where}, {how}: {packed.scheme.value} {packed.group} {packed.shape} x {rows}"
