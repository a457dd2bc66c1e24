"""Instructions a product in every inner loop are what loops.json records: a slower loop shows on a busy machine too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_vla.runtime.cpu.native.targets import Target
from tests.runtime.cpu.loops import RECORD, compiler_version, countable, disassembled, loops

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
MOST = 1.05  # times the recorded instructions


@pytest.mark.parametrize("target", countable(), ids=lambda target: target.name)
def test_no_inner_loop_has_more_instructions_than_recorded(target: Target, tmp_path: Path) -> None:
    if compiler_version(target) != RECORDED["compiler"]:
        pytest.skip(f"recorded with {RECORDED['compiler']}; `python -m tests.runtime.cpu.loops` records anew")
    found = loops(disassembled(target, tmp_path))
    for kind, recorded in RECORDED[target.name].items():
        assert kind in found, f"{target.name} has no inner loop of {kind} any more"
        per_product = found[kind].per_product
        assert per_product <= MOST * recorded["per_product"], f"{target.name}, {kind}: {found[kind]}"


def test_every_target_has_its_loops() -> None:
    """A pattern that matches nothing would pass everything."""
    for target in countable():
        kinds = {kind.partition(",")[0] for kind in RECORDED[target.name]}
        assert kinds >= ({"bf16", "bytes"} if target.name == "avx512-bf16" else {"floats", "bytes"})
