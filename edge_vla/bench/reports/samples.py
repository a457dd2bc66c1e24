"""The distribution of a side's latency: from raw samples beside the result where they can be trusted."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.reports.systems import Result

LOG: Final = logging.getLogger(__name__)

FROM, TO = "scheduled_ns", "finished_ns"  # moments of each query, in the file of samples
SHARES: Final = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
MOST: Final = 160  # points that a curve of this size can show
CLOSE: Final = 0.05  # samples whose median is further from the recorded one are of something else


def distribution(latency: Result, beside: Path | None) -> tuple[list[tuple[float, float]], bool]:
    """(ms, share of queries at most that long), ascending, and whether it is of raw samples."""
    samples = _samples(latency, beside)
    if samples is None:
        points = [(latency[key], share) for key, share in SHARES.items() if latency.get(key)]
        return points + ([(latency["max_ms"], 1.0)] if latency.get("max_ms") else []), False
    samples = np.sort(samples)
    at = np.unique(np.linspace(0, len(samples) - 1, min(MOST, len(samples))).round().astype(int))
    return [(float(samples[i]), float((i + 1) / len(samples))) for i in at], True


def _samples(latency: Result, beside: Path | None) -> NDArray[np.float64] | None:
    name, digest = latency.get("samples"), latency.get("samples_sha256")
    if beside is None or not name or Path(name).name != name:
        return None
    try:
        content = (beside / name).read_bytes()
        if digest and hashlib.sha256(content).hexdigest() != digest:
            LOG.warning("%s is not the file that the result was made with: percentiles are drawn instead", name)
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = (arrays[TO].astype(np.float64) - arrays[FROM]) / 1e6
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        LOG.warning("%s: %s; percentiles are drawn instead", name, error)
        return None
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all() or found.min() <= 0:
        return None
    p50 = latency.get("p50_ms")
    return found if p50 and abs(float(np.median(found)) / p50 - 1) < CLOSE else None
