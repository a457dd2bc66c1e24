"""Ways of rounding judged on unseen frames, as Markdown: a row each, beside the floor and what each is compared to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]


def rounding(result: Result) -> Iterator[str]:
    """KL in nats a token, teacher-forced against bf16, at the action positions; intervals at 95 % over episodes."""
    yield f"{result['model'].capitalize()}, {result['frames']} frames of {result['episodes']} episodes."
    yield ""
    yield "| way | bits a weight | KL | same token | clear leads flipped | part of the KL gone | of |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for name, row in result["rows"].items():
        yield "| " + " | ".join((name, *_cells(row))) + " |"


def _cells(row: Result) -> Iterator[str]:
    yield f"{row['bits_per_weight']:.3f}" if "bits_per_weight" in row else ""
    yield f"{row['kl']['mean']:.5f}"
    share = row["same_token"]
    yield f"{share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"
    yield f"{row['clear_leads_flipped']} of {row['clear_leads']}"
    against = row.get("against", {})
    gone = against.get("kl_closed")
    yield f"{gone['mean']:.2f} [{gone['low']:.2f}, {gone['high']:.2f}]" if gone else ""
    yield against.get("name", "")
