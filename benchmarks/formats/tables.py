"""The format studies' results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.formats.results import FormatRow, FormatsResult, InteropResult
from benchmarks.markdown import number, share, table


def formats(result: FormatsResult) -> Iterator[str]:
    """A row a format: KL in nats a token, teacher-forced against bf16 at the action positions."""
    yield f"{result.model.capitalize()}, {result.frames} frames of {result.episodes} episodes."
    yield ""
    columns = [
        "format",
        "bits a weight",
        "KL, nats",
        "same token",
        "high-margin flips",
        "KL reduction",
        "compared with",
    ]
    yield from table(columns, map(_cells, result.rows))


def _cells(row: FormatRow) -> list[str | None]:
    return [
        row.name,
        None if row.bits_per_weight is None else f"{row.bits_per_weight:.3f}",
        f"{row.kl.mean:.5f}",
        share(row.same_token),
        f"{row.high_margin_flips} of {row.high_margin_tokens}",
        None if row.against is None else number(row.against.kl_reduction),
        None if row.against is None else row.against.name,
    ]


def interop(result: InteropResult) -> Iterator[str]:
    """A row a checkpoint and program: how far its logits are from ours, beside what bfloat16 alone does to ours."""
    rows = [
        (
            f"{case.format}, {case.bits} bits, {case.loader} ({case.linear_class})",
            f"{case.difference:.3f}",
            f"{case.rounding:.3f}",
            f"{case.largest_logit:.1f}",
            f"{case.same_token:.1%} of {case.rows}",
        )
        for case in result.cases
    ]
    yield from table(
        ["format and program", "largest difference", "bfloat16 alone", "largest logit", "same token"], rows
    )
