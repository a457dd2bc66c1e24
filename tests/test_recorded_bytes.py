"""Exports and tokens are the bytes that were recorded: what a change moves, it moves on purpose.

`make_recorded_bytes.py` has the cases. A few always run; all of them, in a quarter of an hour: `pytest -m slow`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from tests.golden.make_recorded_bytes import EXPORTS, RECORD, TOKENS, ExportCase, TokensCase, Workshop, machine

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
OTHER = [f"{name} is {have!r}" for name, have in machine().items() if RECORDED["machine"].get(name) != have]
HERE = pytest.mark.skipif(bool(OTHER), reason=f"recorded elsewhere; sums may round otherwise: {'; '.join(OTHER)}")
SHOW = "python -m tests.golden.make_recorded_bytes --only"


def params(*cases: ExportCase | TokensCase) -> list[Any]:
    return [pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    threads = torch.get_num_threads()
    yield Workshop(tmp_path_factory.mktemp("recorded"))
    torch.set_num_threads(threads)


def test_every_case_is_recorded() -> None:
    assert list(RECORDED["exports"]) == list(EXPORTS)
    assert list(RECORDED["tokens"]) == list(TOKENS)


@pytest.mark.parametrize("case", params(*(case for case in EXPORTS.values() if case.anywhere)))
def test_files_that_every_machine_makes(case: ExportCase, workshop: Workshop) -> None:
    """Rounding to nearest: no sums, so no machine has an excuse."""
    assert_same(case, workshop.hashes(case)["anywhere"], RECORDED["exports"][case.name]["anywhere"])


@HERE
@pytest.mark.parametrize("case", params(*EXPORTS.values()))
def test_files_that_hang_on_the_machine(case: ExportCase, workshop: Workshop) -> None:
    assert_same(case, workshop.hashes(case)["here"], RECORDED["exports"][case.name]["here"])


@HERE
@pytest.mark.parametrize("case", params(*TOKENS.values()))
def test_tokens_and_actions(case: TokensCase, workshop: Workshop) -> None:
    found, recorded = workshop.tokens(case), RECORDED["tokens"][case.name]
    assert found == recorded, f"{case.name!r} acts otherwise; `{SHOW} {case.name!r}` prints its tokens now"


def assert_same(case: ExportCase, found: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    names = sorted({*found, *recorded})
    changed = [name for name in names if found.get(name) != recorded.get(name)]
    lines = [f"{name} ({'changed' if {name} <= {*found} & {*recorded} else 'only in one of them'})" for name in changed]
    assert not changed, f"{case.name}: {', '.join(lines)}; `{SHOW} {case.name}` shows every file's hash now"
