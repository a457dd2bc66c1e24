"""Results for the tests of reports: one with every field filled, one with as little as can be, and an empty one.

Nothing here was measured, and the model's name says so.
"""

from __future__ import annotations

import hashlib

from edge_vla.bench import result as r
from edge_vla.bench.provenance import Provenance
from edge_vla.device.sensors import CpuState, DeviceState, Power
from tests.bench import sample_parts as parts


def sample_result() -> r.Result:
    """Every field filled: three candidates, one peer that ran and one that did not."""
    int8 = r.SpeedRatio(ratio=2.14, low=2.05, high=2.22, blocks=12)
    peer = parts.performance(131.0, 2**29, "hf-bf16")
    peer.ratio_to = {"int8": int8, "int4": r.SpeedRatio(ratio=2.73, low=None, high=None, blocks=1)}
    reference = parts.performance(96.0, 2**29, "torch")
    reference.ratio_to = {"int8": int8}
    return r.Result(
        name="Invented result, for tests of the report",
        model=r.Model(name="no model: invented numbers", scope="These figures were invented to test the report."),
        provenance=_provenance(),
        frames=r.FrameSet(
            source="given",
            name="world-1-frames",
            count=parts.FRAMES,
            episodes=parts.EPISODES,
            sha256=_hash("frames"),
            by_phase={"free motion": 231, "contact": 107},
        ),
        reference=r.Reference(
            name="policy",
            adapters=[],
            identity=_hash("reference"),
            dtype="bf16",
            performance=reference,
            rates=parts.rates(0.965),
        ),
        gates_declared=r.DeclaredGates(
            by_bits={
                "4": r.Bounds(
                    tokens_below_floor=0.25,
                    actions_below_floor=0.35,
                    high_margin_flips=0.03,
                    gripper_flips_above_floor=0.02,
                )
            },
            repeated_inputs=0.9,
            closed_loop=r.DeclaredClosedLoop(environment="demo:1", episodes=344, margin=0.03, live=False),
        ),
        floors={r.ROUNDING_NOISE: parts.agreement(0.88), "float32": parts.agreement(0.90)},
        candidates=[
            _candidate("16 bits", 16, 0.995, 92.0),
            _candidate("int8", 8, 0.874, 61.0),
            _candidate("int4", 4, 0.727, 48.0),
        ],
        peers=[
            r.Peer(
                name="hf-bf16",
                description="transformers 5.17 Llama, eager, bf16 behind the same towers",
                versions={"transformers": "5.17.0", "bitsandbytes": None},
                agreement=parts.agreement(0.91),
                units_off=0.0,
                performance=peer,
                worst_frames=[parts.worst_frame(5)],
            ),
            r.Peer(name="bnb-nf4", description="bitsandbytes NF4", failed="RuntimeError: No GPU found."),
        ],
        limits=parts.limits("int4 on this machine"),
        gates=[
            _gate("tokens", "16 bits", True, 0.95, 0.9, "tokens equal to the reference's"),
            _gate("high-margin flips", "int4", False, 4, 0, "tokens with a clear margin that changed"),
            _gate("non-inferior", "int4", None, None, -0.03, "too few episodes to decide"),
            _gate("high-margin flips", "int8", True, 0, 0, "tokens with a clear margin that changed"),
        ],
        notes=["Invented: do not quote."],
    )


def minimal_result() -> r.Result:
    """One candidate with an agreement alone: nothing timed, no closed loop, no peers, no gates."""
    result = sample_result()
    result.reference.performance, result.reference.rates = r.Performance(), None
    candidate = result.candidates[-1]
    facts = r.ArtifactFacts(
        name="policy-int4",
        identity=_hash("int4"),
        recipe={},
        disk_bytes=5_000_000,
        bits_per_weight=4.5,
        calibration_leakage=None,
    )
    result.candidates = [r.Candidate(name="int4", artifact=facts, agreement=candidate.agreement)]
    result.floors = {r.ROUNDING_NOISE: parts.agreement(0.88)}
    result.frames = r.FrameSet(
        source="synthetic", name="synthetic", count=64, episodes=1, sha256=_hash("synthetic"), by_phase={}
    )
    result.peers, result.limits, result.gates, result.notes = [], None, [], []
    return result


def empty_result() -> r.Result:
    """A run that measured nothing."""
    result = minimal_result()
    result.floors, result.candidates = {}, []
    return result


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _provenance() -> Provenance:
    state = DeviceState(
        cpu=CpuState(governor=None, clock_mhz=None, allowed_mhz=None, locked=None, throttled=None),
        jetson=None,
        gpus=[],
        temperatures_c={"cpu": 51.5},
        power=Power(rails_w={}, total_w=None, total_is="none: this device shows no power rail"),
        publishable=False,
        unpublishable_because=["the processor's clock is not readable", "another process used 0.9 cores"],
    )
    return Provenance(
        command="edge-vla bench int8 int4 --reference policy --frames frames --out evidence",
        commit="0123456789abcdef0123456789abcdef01234567",
        time="2026-11-21T05:00:00+00:00",
        device="Invented CPU",
        cores=2,
        threads=2,
        load_average=1.31,
        python="3.11.7",
        torch="2.13.0+cpu",
        edge_vla="0.1.0",
        device_state=state,
    )


def _candidate(name: str, bits: int, level: float, p50_ms: float) -> r.Candidate:
    facts = r.ArtifactFacts(
        name=f"policy-{name.replace(' ', '')}",
        identity=_hash(name),
        recipe={"bits": bits, "group": 32 if bits == 4 else None, "method": "rtn"},
        disk_bytes=int(4.9e6 + 5.25e6 * bits / 16),
        bits_per_weight=bits + 0.5,
        calibration_leakage=0,
        sensitivity=parts.sensitivity() if bits == 4 else None,
    )
    against = r.AgainstPeer(
        teacher_forced_difference=parts.interval(-0.03),
        exact_action_difference=parts.interval(0.01),
        kl_difference=parts.interval(0.002, 0.001),
    )
    return r.Candidate(
        name=name,
        artifact=facts,
        agreement=parts.agreement(level),
        units_off=0.0,
        performance=parts.performance(p50_ms, int(4.1e8 * (0.5 + bits / 32)), f"int{bits} reference"),
        closed_loop=parts.closed_loop(0.03 * (1 - level)),
        worst_frames=[parts.worst_frame(i) for i in range(2)] if bits == 4 else [],
        stage_profile=parts.stage_profile() if bits == 4 else None,
        against_peers={"hf-bf16": against} if bits == 4 else {},
    )


def _gate(name: str, system: str, passed: bool | None, value: float | None, bound: float, why: str) -> r.Gate:
    return r.Gate(name=name, system=system, passed=passed, value=value, bound=bound, why=why)
