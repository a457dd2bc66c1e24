"""Results for the renderers' tests: plausible seeded numbers in every field, and one with all optional gone.

Nothing here was measured, and the model's name says so.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np

from edge_vla.bench.statistics import wilson
from tests.bench.sample_parts import DIMS, sample_sensitivity, worst

FRAMES, EPISODES = 338, 24
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STAGES = {"preprocess": 0.06, "vision": 0.31, "projector": 0.03, "prefill": 0.27, "decode": 0.31}
SAMPLES = 700

Document = dict[str, Any]


def sample_result(seed: int = 0) -> Document:
    """Every field filled."""
    rng = np.random.default_rng(seed)
    return {
        "version": 2,
        "kind": "bench",
        "name": "Invented result, for tests of the report",
        "model": {
            "name": "no model: invented numbers",
            "speaks_for": "These figures were drawn at random to test the report. They speak for no policy.",
        },
        "environment": {
            "command": "edge-vla bench int8 int4 --reference policy --frames frames --out evidence",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "time": "2026-11-21T05:00:00+00:00",
            "device": "Invented CPU",
            "cores": 2,
            "threads": 2,
            "load_average": 1.31,
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "edge_vla": "0.1.0",
            "publishable": False,
            "unpublishable_because": ["the processor's clock is not readable", "another process used 0.9 cores"],
        },
        "frames": {
            "source": "given",
            "name": "world-1-frames",
            "count": FRAMES,
            "episodes": EPISODES,
            "sha256": _hash("frames"),
            "by_phase": {"free motion": 231, "contact": 74, "gripper change": 33},
        },
        "reference": {"name": "policy", "adapters": [], "identity": _hash("reference"), "dtype": "bf16"},
        "reference_measured": {
            "latency": _latencies(rng, "reference", 96.0),
            "memory": _memory(1.0),
            "closed_loop_rates": _rates(344, 0.965),
            "kernels": {"decoder": "torch", "vision": "torch"},
            "ratio_to": {"int8": {"ratio": 1.57, "low": 1.51, "high": 1.64, "blocks": 4}},
        },
        "gates_declared": {"non_inferiority_margin": 0.03, "episodes_for_power": 688, "int4_exact_action": 0.05},
        "floors": {
            "rounding shaken": _agreement(rng, 0.88),
            "float32": _agreement(rng, 0.90),
            "run again": _agreement(rng, 1.0),
        },
        "candidates": [
            _candidate(rng, "16 bits", 16, 0.995, 92.0),
            _candidate(rng, "int8", 8, 0.874, 61.0),
            _candidate(rng, "int4", 4, 0.727, 48.0),
        ],
        "peers": [
            {
                "name": "hf-bf16",
                "what": "transformers 5.17 Llama, eager, bf16 behind the same towers",
                "ran": True,
                "why_not": None,
                "latency": _latency(rng, "hf-bf16", 131.0, "back to back"),
                "memory": _memory(1.3),
                "agreement": _agreement(rng, 0.91),
                "versions": {"transformers": "5.17.0", "torch": "2.13.0+cpu"},
                "ratio_to": {
                    "int8": {"ratio": 2.14, "low": 2.05, "high": 2.22, "blocks": 12},
                    "int4": {"ratio": 2.73, "low": None, "high": None, "blocks": 1},
                },
            },
            {
                "name": "bitsandbytes-int4",
                "what": "transformers with bitsandbytes NF4",
                "ran": False,
                "why_not": "RuntimeError: No GPU found. A GPU is needed for quantization.",
            },
        ],
        "limits": {
            "model": "int4 on this machine",
            "ceilings": {"copy_bytes_per_s": 1.21e10, "gemm_flops": {"bf16": 9.1e10}, "how": "best of 5"},
            "stages": [
                _limit("vision", 2.9e6, 1.1e9, 0.24, 12.1, 16.0),
                _limit("prefill", 1.4e6, 2.6e8, 0.12, 2.9, 12.9),
                _limit("decode", 8.2e6, 3.1e7, 0.68, 0.34, 15.0),
            ],
        },
        "gates": [
            _gate("16 bits: same action", "16 bits", True, 0.95, 0.9, "what the export alone may change"),
            _gate("int8: high-margin flips", "int8", True, 0, 0, "a clear lead that flips is a bug, not rounding"),
            _gate("int4: high-margin flips", "int4", False, 4, 0, "a clear lead that flips is a bug, not rounding"),
            _gate("int4: non-inferior", "int4", None, None, -0.03, "too few episodes to tell"),
        ],
        "notes": ["Invented: do not quote.", "The live regime used the latencies measured back to back."],
    }


def minimal_result() -> Document:
    """No peers, no closed loop, no reference measured, and null wherever null may stand."""
    result = sample_result()
    del result["reference_measured"]
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    apart = {"mean": 1.0, "p95": 3, "p99": 9, "max": 40, "within_1": 0.7, "within_2": 0.9, "beyond_8": 0.01}
    bare = {
        "frames": 64,
        "episodes": 1,
        "dims": ["0", "1"],
        **dict.fromkeys(("teacher_forced", "free_running", "exact_tokens", "exact_action"), interval),
        "bins_apart": apart,
        **dict.fromkeys(("robot_units", "gripper", "kl", "outside_mass", "soft_action_l1", "margins", "invalid")),
        **dict.fromkeys(("against_recorded", "drift", "by_phase", "mcnemar_exact_action")),
    }
    result["frames"] |= {"source": "synthetic", "by_phase": {}}
    result["floors"] = {"rounding shaken": bare}
    candidate = result["candidates"][-1]
    result["candidates"] = [
        {
            **candidate,
            "artifact": {**candidate["artifact"], "layer_errors": None, "recipe": {}},
            "agreement": bare,
            "latency": {"back to back": {"mode": "back to back", "queries": 5, "p50_ms": None, "hz": None}},
            "memory": None,
            "closed_loop": None,
            "worst_frames": [],
        }
    ]
    return copy.deepcopy(result | {"peers": [], "limits": None, "gates": [], "notes": []})


def empty_result() -> Document:
    """A run that measured nothing."""
    return minimal_result() | {"floors": {}, "candidates": []}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _iv(mean: float, half: float = 0.02, **more: Any) -> Document:
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return {"mean": round(mean, 6), "low": low, "high": high, "deff": 1.6, "n": FRAMES, **more}


def _agreement(rng: np.random.Generator, level: float) -> Document:
    by_dim = np.clip(level + rng.normal(0, 0.04 * (level < 1), len(DIMS)), 0, 1).tolist()
    positions = FRAMES * len(DIMS)
    decay = 0.35 + 0.5 * (1 - level)
    away = np.array([(1 - level) * (1 - decay) * decay**k for k in range(30)])
    counts = [int(positions * level), *(int(positions * share) for share in away)]
    deciles = [
        {"from": 0.4 * i, "to": 0.4 * (i + 1), "positions": 237, "flips": int(237 * (1 - level) * 3.2 * 0.6**i)}
        for i in range(10)
    ]
    apart = {
        "mean": 2.4 * (1 - level),
        "p50": 0.0,
        "p95": 12 * (1 - level),
        "p99": 30 * (1 - level),
        "max": int(90 * (1 - level)),
        "within_1": min(1.0, level + 0.07),
        "within_2": min(1.0, level + 0.1),
        "beyond_8": 0.04 * (1 - level),
    }
    return {
        "frames": FRAMES,
        "episodes": EPISODES,
        "dims": DIMS,
        "teacher_forced": _iv(level, 0.012 * (level < 1)),
        "teacher_forced_by_dimension": [_iv(value, 0.03 * (level < 1)) for value in by_dim],
        "teacher_forced_holm_low": [max(0.0, value - 0.04) for value in by_dim],
        "teacher_forced_lowest_holm": {"dimension": DIMS[int(np.argmin(by_dim))], "low": max(0.0, min(by_dim) - 0.04)},
        "free_running": _iv(level**1.5, 0.015 * (level < 1)),
        "free_running_by_dimension": [_iv(value**1.5, 0.03 * (level < 1)) for value in by_dim],
        "first_divergence": [int(FRAMES * (1 - level) * 0.5)] * 7 + [int(FRAMES * level**7)],
        "exact_tokens": _iv(level**7, 0.04 * (level < 1)),
        "exact_action": _iv(level**7, 0.04 * (level < 1)),
        "bins_apart": {
            **apart,
            "histogram": [[k, n] for k, n in enumerate(counts) if n],
            "by_dimension": [apart] * len(DIMS),
        },
        "robot_units": {
            "nrmse": 0.05 * (1 - level),
            "by_dimension": [
                {"mean": s, "p95": 4 * s, "p99": 7 * s, "max": 20 * s, "nrmse": 0.05 * (1 - level)}
                for s in ((1 - level) * np.array([1e-3, 1e-3, 1e-3, 2e-2, 2e-2, 4e-2, 2e-2])).tolist()
            ],
        },
        "gripper": {
            "flips": _iv(0.03 * (1 - level), 0.002),
            "transitions": 41,
            "shift_steps": {"mean": 1.2 * (1 - level), "max": 2.0 * (level < 1)},
            "dimension": 6,
        },
        "kl": {
            "all": _iv(0.2 * (1 - level), 0.004),
            "by_dimension": [_iv(0.2 * (1 - level), 0.01)] * 7,
            "p99": 0.4,
            "max": 2.1,
        },
        "outside_mass": {"reference_mean": 3.1e-6, "candidate_mean": 3.4e-6, "candidate_max": 4e-4},
        "soft_action_l1": {"mean": 1.4 * (1 - level), "by_dimension": [1.4 * (1 - level)] * 7},
        "margins": {
            "floor": 1.3,
            "deciles": deciles,
            "high_margin": {"positions": 606, "flips": 4 if level < 0.8 else 0},
            "near_tie": {"positions": positions - 606, "flips": int((positions - 606) * (1 - level))},
        },
        "invalid": {"candidate": 0.0, "reference": 0.0},
        "against_recorded": {
            "candidate": {"equal": _iv(0.41 * level), "within_2_by_dimension": [0.6] * 7, "l1_by_dimension": [3.1] * 7},
            "reference": {"equal": _iv(0.41), "within_2_by_dimension": [0.61] * 7, "l1_by_dimension": [3.0] * 7},
            "equal_difference": {"mean": 0.41 * (level - 1), "low": 0.41 * (level - 1) - 0.02, "high": 0.02},
            "l1_difference_by_dimension": [_iv(0.1, 0.05)] * 7,
        },
        "drift": {
            "10": {"mean": 0.3 * (1 - level), "p95": 0.8 * (1 - level), "bias_by_dimension": [0.01] * 7},
            "50": None,
        },
        "by_phase": {
            name: {
                "frames": n,
                "teacher_forced": _iv(level - lost * (level < 1)),
                "exact_action": _iv((level - lost) ** 7),
            }
            for name, n, lost in (("free motion", 231, 0.0), ("contact", 74, 0.02), ("gripper change", 33, 0.05))
        },
        "mcnemar_exact_action": None,
    }


def _latency(rng: np.random.Generator, name: str, p50: float, mode: str) -> Document:
    stages = {stage: p50 * part for stage, part in STAGES.items()}
    paced = mode.startswith("paced")
    return {
        "mode": mode,
        "queries": SAMPLES,
        "warm_up": {"queries": 60, "seconds": 5.2, "stable": True},
        "p50_ms": p50,
        "p90_ms": p50 * 1.08,
        "p95_ms": p50 * 1.12,
        "p99_ms": p50 * 1.31,
        "p999_ms": None,
        "refused": {"p999": f"n/a (n={SAMPLES} < 6636)"},
        "max_ms": p50 * 1.8,
        "mean_ms": p50 * 1.02,
        "stdev_ms": p50 * 0.05,
        "cov": 0.05 + 0.01 * rng.random(),
        "hz": 1e3 / p50,
        "sustained_hz": 980 / p50,
        "p50_interval": [p50 * 0.99, p50 * 1.012],
        "stages": [{"name": stage, "p50_ms": ms, "share": ms / p50} for stage, ms in stages.items()],
        "unattributed_ms": p50 * (1 - sum(STAGES.values())),
        "deadline_ms": 200.0 if paced else None,
        "deadline_misses": 3 if paced else None,
        "samples": None,
        "samples_sha256": None,
        "cold": {"ready_s": 0.81, "first_ms": p50 * 2.3},
        "repeat_ratio": 0.97,
    }


def _latencies(rng: np.random.Generator, name: str, p50: float) -> Document:
    return {mode: _latency(rng, name, p50 * k, mode) for mode, k in (("back to back", 1.0), ("paced 5 Hz", 1.06))}


def _memory(scale: float) -> Document:
    return {
        "weights": {"vision": int(4.4e6 * scale), "projector": int(4e5 * scale), "decoder": int(5.25e6 * scale)},
        "load_peak_bytes": int(3.9e8 * scale**0.2),
        "steady_bytes": int(3.5e8 * scale**0.2),
        "peak_bytes": int(4.1e8 * scale**0.2),
        "pss_peak_bytes": int(3.8e8 * scale**0.2),
        "cuda": None,
        "system": None,
        "samples": 2310,
        "period_ms": 20.0,
    }


def _rate(episodes: int, share: float) -> Document:
    success = round(episodes * share)
    low, high = wilson(success, episodes)
    return {"success": success, "episodes": episodes, "low": low, "high": high, "wrong_object": 1, "steps_mean": 14.2}


def _rates(episodes: int, share: float) -> Document:
    half = episodes // 2
    return {"pick": _rate(half, share + 0.015), "put": _rate(half, share - 0.015), "all": _rate(episodes, share)}


def _paired(margin: float, difference: float, half: float, **more: Any) -> Document:
    low = difference - half
    return {
        "pairs": {"both": 321, "only_reference": 11, "only_candidate": 8, "neither": 4},
        "difference": {"mean": difference, "low": low, "high": difference + half},
        "mcnemar_p": 0.648,
        "discordance": 0.055,
        "non_inferior": low > -margin,
        "episodes_needed": 688,
        **more,
    }


def _closed_loop(lost: float) -> Document:
    def regime(extra: float) -> Document:
        by_kind = {kind: _paired(0.03, -lost - extra, 0.035) for kind in ("pick", "put")}
        sides = {"reference": _rates(344, 0.965), "candidate": _rates(344, 0.965 - lost - extra)}
        return _paired(0.03, -lost - extra, 0.021, by_kind=by_kind, **sides)

    return {"world": "demo:1", "margin": 0.03, "regimes": {"lock-step": regime(0.0), "live 5 Hz": regime(0.012)}}


def _candidate(rng: np.random.Generator, name: str, bits: int, level: float, p50: float) -> Document:
    base = {16: 0.0, 8: 0.006, 4: 0.09}[bits]
    errors = {
        str(layer): {
            f"{'self_attn' if i < 4 else 'mlp'}.{module}": float(base * (0.7 + 0.1 * i + 0.3 * rng.random()))
            for i, module in enumerate(MODULES)
        }
        for layer in range(4)
    }
    return {
        "name": name,
        "artifact": {
            "name": f"policy-{name.replace(' ', '')}",
            "identity": _hash(name),
            "recipe": {"bits": bits, "group": 32 if bits == 4 else None, "method": "rtn"},
            "disk_bytes": int(4.9e6 + 5.25e6 * bits / 16),
            "bits_per_weight": bits + 0.5 * (bits < 16),
            "layer_errors": errors if base else None,
            "sensitivity": sample_sensitivity() if bits == 4 else None,
        },
        "agreement": _agreement(rng, level),
        "latency": _latencies(rng, name, p50),
        "memory": _memory(0.5 + bits / 32),
        "closed_loop": _closed_loop(0.03 * (1 - level)),
        "worst_frames": [worst(rng, i) for i in range(3 if bits == 4 else 1)] if bits < 16 else [],
        "kernels": {"decoder": f"int{bits} reference", "vision": "torch"},
        "waterfall": _waterfall() if bits == 4 else None,
    }


def _waterfall() -> Document:
    measured = {"preprocess": 1.2, "vision": 16.0, "prefill": 12.9, "decode": 15.0}
    limits = [
        _limit("vision", 2.9e6, 1.1e9, 0.24, 12.1, 16.0),
        _limit("prefill", 1.4e6, 2.6e8, 0.12, 2.9, 12.9),
        _limit("decode", 8.2e6, 3.1e7, 0.68, 0.34, 15.0),
        _limit("whole action", 1.25e7, 1.4e9, 1.04, 15.3, 43.9),
    ]
    return {
        "actions": 50,
        "prompt tokens": 27,
        "kernels": {"decoder": "int4 reference"},
        "measured_ms": {**measured, "total": sum(measured.values())},
        "limits": {"model": "given", "ceilings": {"copy_bytes_per_s": 1.21e10}, "stages": limits},
        "operators": [{"name": "aten::mm", "ms": 9.5, "calls": 61.0}],
    }


def _limit(name: str, *figures: float) -> Document:
    keys = ("bytes", "operations", "bytes_ms", "operations_ms", "measured_ms")
    stage = dict(zip(keys, figures, strict=True))
    limit = max(stage["bytes_ms"], stage["operations_ms"])
    return {"name": name, **stage, "limit_ms": limit, "share": limit / stage["measured_ms"]}


def _gate(name: str, side: str, passed: bool | None, value: float | None, bound: float, why: str) -> Document:
    return {"name": name, "side": side, "passed": passed, "value": value, "bound": bound, "why": why}
