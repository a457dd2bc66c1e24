"""The demo policy studies' results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.demo_policy.results import FrameAccuracy, LadderResult, PolicyEvaluation, ReproductionResult
from benchmarks.demo_policy.results_v1 import AdapterFormats
from benchmarks.markdown import percent, share, table

ACCURACY = ["exact tokens, by dimension", "dx sign", "named target", "gripper decision"]


def evaluation(result: PolicyEvaluation) -> Iterator[str]:
    """Closed loop by condition, then accuracy on single frames."""
    rows = [
        (
            name,
            percent(rates.success, rates.success_interval),
            percent(rates.wrong_object, rates.wrong_object_interval),
            None if rates.mean_steps is None else f"{rates.mean_steps:.1f}",
            str(rates.episodes),
        )
        for name, rates in result.closed_loop.items()
    ]
    yield from table(["condition", "success", "wrong object", "steps of successes", "episodes"], rows)
    if result.frames:
        yield ""
        yield from table(["frames", *ACCURACY], [(name, *_accuracy(one)) for name, one in result.frames.items()])


def _accuracy(found: FrameAccuracy) -> tuple[str, ...]:
    exact = ", ".join(f"{name} {one.exact:.0%}" for name, one in found.dimensions.items())
    return exact, percent(found.dx_sign), percent(found.named_target), percent(found.gripper_decision)


def ladder(result: LadderResult) -> Iterator[str]:
    """What each small problem's run memorised or learned."""
    rows = []
    for name, rung in result.rungs.items():
        if rung.memorised is not None:
            learned = rung.memorised
            found = f"memorised {learned.frames} frames: {learned.tokens:.1%} of tokens, sign {learned.dx_sign:.1%}"
        elif rung.fresh is not None:
            sign = percent(rung.fresh.dx_sign, rung.dx_sign_interval)
            found = f"{rung.fresh_frames} fresh frames: sign of dx {sign}, named target {rung.fresh.named_target:.1%}"
        else:
            found = ""
        rows.append((name, str(rung.steps), str(rung.pictures), found))
    yield from table(["stage", "steps", "pictures", "free-running"], rows)


def adapter_formats(result: AdapterFormats) -> Iterator[str]:
    """World 2, the adapter merged: a row a format."""
    rows = [
        (
            row.name,
            None if row.same_token is None else share(row.same_token),
            None if row.same_action is None else share(row.same_action),
            None if row.high_margin_flips is None else f"{row.high_margin_flips} of {row.high_margin_tokens}",
            None if row.pick is None else f"{row.pick[0]} of {row.pick[1]}",
            None if row.put is None else f"{row.put[0]} of {row.put[1]}",
        )
        for row in result.rows
    ]
    columns = [
        "demo policy, world 2, adapter merged",
        "same token as bf16",
        "same action",
        "high-margin flips",
        "pick",
        "put",
    ]
    yield from table(columns, rows)


def reproduction(result: ReproductionResult) -> Iterator[str]:
    """Success of the shipped policy and of one trained again, then what training cost."""
    rows = [
        (
            name,
            percent(row.shipped, row.shipped_interval),
            percent(row.reproduced, row.reproduced_interval),
            f"{100 * row.difference:+.1f} pp",
            "yes" if row.within_tolerance else "no",
        )
        for name, row in result.conditions.items()
    ]
    tolerance = max((row.tolerance for row in result.conditions.values()), default=0.0)
    yield from table(["success", "shipped", "trained again", "difference", f"within {100 * tolerance:g} pp"], rows)
    yield ""
    costs = [(name, str(cost.pictures), f"{cost.seconds:.0f} s") for name, cost in result.stages.items()]
    yield from table(["stage", "pictures", "time"], costs)
