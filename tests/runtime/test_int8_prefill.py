"""`auto` rounds a prefill's rows to 8 bits only where a bench found this very artifact to keep its policy so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import edge_vla
from edge_vla.artifact import Artifact, int8_prefill
from edge_vla.artifact.int8_prefill import Int8Prefill
from edge_vla.bench.int8_prefill import AGREEMENT, verdict
from edge_vla.bench.plan import Plan, ReferencePlan
from edge_vla.bench.run import bench
from edge_vla.data import synthetic_image
from edge_vla.runtime.cpu.native.library import library
from tests.conftest import TINY

pytestmark = pytest.mark.skipif(library() is None, reason="no C engine here")


def measured(artifact: Artifact, *, passed: bool) -> Int8Prefill:
    gates: dict[str, bool | None] = {name: passed or name != AGREEMENT[0] for name in AGREEMENT}
    return Int8Prefill(artifact.identity, passed, 96, 0.99, 0.98, 1.0, 0.99, gates)


def kernel(directory: Path, want: str = "auto") -> str:
    with edge_vla.load(directory, "cpu", kernel=want, check=False) as policy:
        return policy.network.kernels["int8"]


@pytest.fixture
def artifact(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> Artifact:
    return Artifact(Path(shutil.copytree(tiny_artifacts[8], tmp_path / "int8")))


def test_auto_goes_by_the_verdict(artifact: Artifact) -> None:
    assert kernel(artifact.directory).startswith("native@")
    int8_prefill.write(artifact, measured(artifact, passed=True))
    assert kernel(artifact.directory).startswith("native/int8@")
    assert kernel(artifact.directory, "native").startswith("native@"), "a name says what runs"
    assert kernel(artifact.directory, "auto/bf16").startswith("native@"), "golden frames are of one arithmetic"
    int8_prefill.write(artifact, measured(artifact, passed=False))
    assert kernel(artifact.directory).startswith("native@")


def test_the_action_is_that_of_the_kernel_by_name(artifact: Artifact) -> None:
    int8_prefill.write(artifact, measured(artifact, passed=True))
    image = synthetic_image(0, artifact.manifest.config.spec.image_size)
    policies = [edge_vla.load(artifact.directory, "cpu", kernel=name, check=False) for name in ("auto", "native/int8")]
    ours, named = (policy.act(image, "open the drawer") for policy in policies)
    assert (ours.tokens, ours.margins) == (named.tokens, named.margins)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"passed": true}', json.dumps({"artifact": 1, "passed": "yes"})], ids=repr
)
def test_a_broken_verdict_is_none(artifact: Artifact, text: str) -> None:
    int8_prefill.write(artifact, measured(artifact, passed=True))
    (artifact.directory / int8_prefill.FILE).write_text(text)
    assert int8_prefill.read(artifact) is None
    assert kernel(artifact.directory).startswith("native@")


def test_a_verdict_on_other_weights_is_none(artifact: Artifact, tiny_artifacts: Mapping[int, Path]) -> None:
    int8_prefill.write(artifact, measured(Artifact(tiny_artifacts[4]), passed=True))
    assert int8_prefill.read(artifact) is None


def test_a_bench_leaves_its_verdict_and_measures_it_again(artifact: Artifact, tmp_path: Path) -> None:
    """Random weights, a dozen frames: whatever the gates say is what stands there."""
    said: list[str] = []
    plan = Plan(kernel="native/int8", profile="brief")
    result = bench([artifact.directory], ReferencePlan(TINY, limit=12), tmp_path / "out", plan, said.append)
    found = int8_prefill.read(artifact)
    assert found is not None
    assert found == verdict(result, result.candidates[0], artifact)
    gates = {gate.name: gate.passed for gate in result.gates if gate.name in AGREEMENT}
    assert found.gates == gates
    assert found.passed == all(passed is True for passed in gates.values())
    assert found.frames == 12
    assert found.why in said[-1]
    artifact.verify()  # no hash covers it


def test_a_bench_of_the_exact_rows_says_nothing(artifact: Artifact, tmp_path: Path) -> None:
    plan = Plan(kernel="native", profile="brief")
    bench([artifact.directory], ReferencePlan(TINY, limit=12), tmp_path / "out", plan, lambda _: None)
    assert int8_prefill.read(artifact) is None
