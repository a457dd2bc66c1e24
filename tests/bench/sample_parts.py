"""Parts of a sample result: agreements, latencies, closed loops and a sensitivity report, all invented."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from edge_vla.bench import result as r
from edge_vla.bench.result import Interval
from edge_vla.bench.statistics import wilson
from edge_vla.device.limits import Ceilings, Limits, StageLimit
from edge_vla.sensitivity import Choice, LinearChoices, ParetoPoint, SensitivityReport

DIMS = ["dx", "dy", "dz", "roll", "pitch", "yaw", "grip"]
FRAMES, EPISODES = 338, 24
POSITIONS = FRAMES * len(DIMS)
QUERIES = 700
BITS = {"int2 g128": 2.1, "int4 g128": 4.1, "int8": 8.0, "bf16": 16.0}


def interval(mean: float, half: float = 0.02) -> Interval:
    return Interval(mean, mean - half, mean + half, 1.6, FRAMES)


def agreement(level: float) -> r.Agreement:
    """One whose share of equal tokens is `level`; 1 is the reference itself."""
    lost, half = 1 - level, 0.02 * (level < 1)
    by_dimension = [interval(level - 0.01 * i * (level < 1), half) for i in range(len(DIMS))]
    apart = r.Distances(
        mean=2.4 * lost, p50=0, p95=2, p99=9, max=40, within_1=level, within_2=level, beyond_8=0.04 * lost
    )
    deciles = [
        r.Flips(positions=237, flips=int(237 * lost * 0.6**i), low=0.4 * i, high=0.4 * (i + 1)) for i in range(10)
    ]
    error = r.UnitError(mean=lost * 1e-3, p95=4e-3, p99=7e-3, max=0.02, nrmse=0.05 * lost)
    return r.Agreement(
        frames=FRAMES,
        episodes=EPISODES,
        dims=DIMS,
        teacher_forced=interval(level, half),
        teacher_forced_by_dimension=by_dimension,
        teacher_forced_lowest_holm=r.LowestDimension(dimension="grip", low=by_dimension[-1].low),
        free_running=interval(level**1.5, half),
        free_running_by_dimension=by_dimension,
        exact_tokens=interval(level**7, half),
        exact_action=interval(level**7, half),
        bins_apart=r.BinsApart(overall=apart, by_dimension=[apart] * 7),
        robot_units=r.RobotUnits(nrmse=0.05 * lost, by_dimension=[error] * 7),
        gripper=r.Gripper(
            flips=interval(0.03 * lost, 0.002), transitions=41, shift_mean_steps=None, shift_max_steps=None, dimension=6
        ),
        kl=r.Divergence(overall=interval(0.2 * lost, 0.004), by_dimension=[interval(0.1)] * 7, p99=0.4, max=2.1),
        outside_mass=r.OutsideMass(reference_mean=3.1e-6, candidate_mean=3.4e-6, candidate_max=4e-4),
        margins=r.Margins(
            floor=1.3,
            deciles=deciles,
            high_margin=r.Flips(positions=606, flips=4 if level < 0.8 else 0),
            near_tie=r.Flips(positions=POSITIONS - 606, flips=int((POSITIONS - 606) * lost)),
        ),
        invalid=r.InvalidTokens(candidate=0.0, reference=0.0),
        against_recorded=r.AgainstRecorded(
            candidate=interval(0.41),
            reference=interval(0.42),
            equal_difference=interval(-0.4 * lost),
            l1_difference_by_dimension=[interval(0.1)] * 7,
        ),
        drift=[
            r.Drift(
                window=10,
                windows=749,
                mean=0.3 * lost,
                p95=0.8 * lost,
                bias_by_dimension=[0.01] * 7,
                spread_by_dimension=[0.1] * 7,
            )
        ],
        by_phase={
            name: r.PhaseAgreement(frames=n, teacher_forced=interval(level), exact_action=interval(level**7))
            for name, n in (("free motion", 231), ("contact", 107))
        },
    )


def performance(p50_ms: float, peak_bytes: int, kernel: str) -> r.Performance:
    memory = r.Memory(
        weights={"vision": 4_400_000, "decoder": 5_250_000},
        load_peak_bytes=390_000_000,
        loaded_bytes=350_000_000,
        peak_bytes=peak_bytes,
        pss_peak_bytes=None,
        cuda=None,
        system=r.SystemMemory(total_bytes=2**34, available_at_start_bytes=2**33, available_drop_bytes=2**29),
        samples=2310,
        period_ms=20.0,
        watcher=r.WatcherCost(cpu_share=0.02, bytes=15_000_000),
    )
    latencies = {r.BACK_TO_BACK: latency(p50_ms), "paced 5 Hz": latency(p50_ms * 1.06, "paced 5 Hz", 200.0)}
    return r.Performance(latency=latencies, memory=memory, kernels={"decoder": kernel})


def latency(p50_ms: float, mode: str = r.BACK_TO_BACK, deadline_ms: float | None = None) -> r.Latency:
    stages = {"vision": 0.4, "prefill": 0.25, "decode": 0.3}
    return r.Latency(
        mode=mode,
        queries=QUERIES,
        warm_up=r.WarmUp(queries=60, seconds=5.2, stable=True),
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.08,
        p95_ms=p50_ms * 1.12,
        p99_ms=p50_ms * 1.31,
        p999_ms=None,
        refused={"p999": f"n/a (n={QUERIES} < 6636)"},
        max_ms=p50_ms * 1.8,
        mean_ms=p50_ms * 1.02,
        stdev_ms=p50_ms * 0.05,
        cov=0.05,
        hz=1e3 / p50_ms,
        sustained_hz=980 / p50_ms,
        p50_interval_ms=(p50_ms * 0.99, p50_ms * 1.012),
        stages=[r.Stage(name=name, p50_ms=p50_ms * part, share=part) for name, part in stages.items()],
        unattributed_ms=p50_ms * 0.05,
        deadline_ms=deadline_ms,
        deadline_misses=None if deadline_ms is None else 3,
        cold=r.ColdStart(ready_s=0.81, first_ms=p50_ms * 2.3),
        repeat_ratio=0.97,
    )


def rates(share: float, episodes: int = 344) -> dict[str, r.Rate]:
    success = round(episodes * share)
    low, high = wilson(success, episodes)
    rate = r.Rate(success=success, episodes=episodes, low=low, high=high, wrong_object=1, steps_mean=14.2)
    return {"pick": rate, "put": rate, "all": rate}


def closed_loop(lost: float, environment: str = "demo:1", regime: str = "lock-step") -> r.ClosedLoop:
    outcome = r.PairedOutcome(
        pairs=r.Pairs(both=321, only_reference=11, only_candidate=8, neither=4),
        difference=interval(-lost, 0.021),
        mcnemar_p=0.648,
        discordance=0.055,
        non_inferior=lost + 0.021 < 0.03,
        episodes_needed=688,
    )
    regimes = [
        r.Regime(
            name=regime,
            reference=rates(0.965),
            candidate=rates(0.965 - lost),
            overall=outcome,
        )
    ]
    return r.ClosedLoop(environment=environment, margin=0.03, regimes=regimes)


def worst_frame(index: int, instruction: str = "put the red block on the white plate") -> r.WorstFrame:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (188, 170, 150)).save(buffer, "PNG")
    return r.WorstFrame(
        frame=17 + 40 * index,
        episode=f"seed-{index}",
        step=9,
        instruction=instruction,
        image="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        reference_tokens=[300] * 7,
        tokens=[310] * 7,
        reference_action=[0.01] * 7,
        action=[-0.012] * 7,
        bins_apart=[10] * 7,
    )


def limits(model: str) -> Limits:
    stages = [
        StageLimit(
            name=name,
            bytes=bytes_ms * 1.2e7,
            operations=operations_ms * 9.1e7,
            bytes_ms=bytes_ms,
            operations_ms=operations_ms,
            limit_ms=max(bytes_ms, operations_ms),
            measured_ms=measured_ms,
            share=max(bytes_ms, operations_ms) / measured_ms,
        )
        for name, bytes_ms, operations_ms, measured_ms in (
            ("vision", 0.24, 12.1, 16.0),
            ("prefill", 0.12, 2.9, 12.9),
            ("decode", 0.68, 0.34, 15.0),
            ("whole action", 1.04, 15.3, 43.9),
        )
    ]
    return Limits(model=model, ceilings=Ceilings(1.21e10, {"bf16": 9.1e10}, "best of 5"), stages=stages)


def stage_profile() -> r.StageProfile:
    return r.StageProfile(
        actions=50,
        prompt_tokens=27,
        kernels={"decoder": "int4 reference"},
        measured_ms={"preprocess": 1.2, "vision": 16.0, "prefill": 12.9, "decode": 15.0, "total": 45.1},
        limits=limits("given"),
    )


def sensitivity(layers: int = 2, seed: int = 0) -> SensitivityReport:
    """Invented KL costs that fall with the bits, and the choice of int4 for all."""
    rng = np.random.default_rng(seed)
    linears = tuple(
        LinearChoices(
            layer=layer,
            name=name,
            weights=4096,
            format="int4 g128",
            choices=tuple(
                Choice(form, int(4096 * bits / 8), 0.0 if form == "bf16" else float(rng.lognormal(-3, 1)) * 4.0**-bits)
                for form, bits in BITS.items()
            ),
        )
        for layer in range(layers)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )
    size = sum(linear.chosen.bytes for linear in linears)
    return SensitivityReport(
        limit_bytes=size,
        linears_bytes=size,
        linears_bytes_on_device=size,
        bits_per_weight=4.1,
        predicted_kl=0.02,
        predicted_kl_mixed=0.02,
        predicted_kl_uniform=0.025,
        residual_kept=0.4,
        vision=None,
        linears=linears,
        pareto=(ParetoPoint(size, 0.02),),
    )
