"""The doctor on an artifact: whole or damaged, too large, with other tokens; and what was meant by a wrong path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_vla.cli import main
from edge_vla.device.doctor import Check, Verdict, examine
from edge_vla.device.doctor.check import ARTIFACT, RESOURCE
from edge_vla.device.doctor.system import System
from tests.device.recorded import CPU_TORCH, MEMINFO, recorded

ALL = {"artifact", "fits", "hashes", "kernels", "golden"}


def machine(root: Path, free_kb: int = 20_000_000, disk: int = 10**11) -> System:
    files = {"proc/meminfo": MEMINFO.format(free_kb)}
    return recorded(root, files, modules={"torch": CPU_TORCH}, free_disk=lambda path: disk)


def checks(system: System, artifact: Path, fast: bool = False) -> dict[str, Check]:
    return {one.name: one for one in examine(system, artifact, fast=fast).checks if one.group in ("artifact", "memory")}


@pytest.fixture
def artifact(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifacts[4], tmp_path / "policy"))


def test_a_whole_artifact(artifact: Path, tmp_path: Path) -> None:
    found = checks(machine(tmp_path), artifact)
    assert set(found) >= ALL
    assert {found[name].verdict for name in ALL} == {Verdict.OK}
    assert "4 bits, prompt openvla, keys random" in found["artifact"].found
    assert "int4: " in found["kernels"].found
    assert "golden frames give their tokens" in found["golden"].found


def test_fast_reads_no_weights(artifact: Path, tmp_path: Path) -> None:
    assert ALL & set(checks(machine(tmp_path), artifact, fast=True)) == {"artifact", "fits"}


def test_a_changed_weight(artifact: Path, tmp_path: Path) -> None:
    file = artifact / "decoder" / "layer-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = checks(machine(tmp_path), artifact)
    assert found["hashes"].verdict is Verdict.FAILURE
    assert found["hashes"].exit_code == ARTIFACT
    assert "layer-000" in found["hashes"].found
    assert "golden" not in found, "nothing is run from weights that are not those of the manifest"


def test_a_missing_file(artifact: Path, tmp_path: Path) -> None:
    (artifact / "head.safetensors").unlink()
    found = checks(machine(tmp_path), artifact)
    assert found["artifact"].verdict is Verdict.FAILURE
    assert "edge-vla verify" in found["artifact"].remedy
    assert not (ALL - {"artifact"}) & set(found)


def test_other_tokens_than_recorded(artifact: Path, tmp_path: Path) -> None:
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    frame = manifest["golden"][0]
    frame["tokens"][0] = frame["tokens"][0] - 5
    frame["margins"][0], frame["noise"] = 9.0, 0.001
    path.write_text(json.dumps(manifest))
    found = checks(machine(tmp_path), artifact)
    assert found["golden"].verdict is Verdict.FAILURE
    assert found["golden"].exit_code == ARTIFACT
    assert "--kernel reference" in found["golden"].remedy


def test_too_little_memory(artifact: Path, tmp_path: Path) -> None:
    found = checks(machine(tmp_path, free_kb=700_000), artifact)
    assert found["fits"].verdict is Verdict.FAILURE
    assert found["fits"].exit_code == RESOURCE
    assert "golden" not in found


def test_the_gpus_memory_counts_where_torch_sees_a_gpu(artifact: Path, tmp_path: Path) -> None:
    torch = replace(CPU_TORCH, facts={"cuda": "12.6", "free": "1000000", "total": "2000000"})
    system = recorded(tmp_path, {"proc/meminfo": MEMINFO.format(20_000_000)}, modules={"torch": torch})
    assert "0.0 GB free on the GPU" in checks(system, artifact)["fits"].found


def test_a_full_disk_and_a_disk_with_room(artifact: Path, tmp_path: Path) -> None:
    assert checks(machine(tmp_path), artifact, fast=True)["disk"].verdict is Verdict.OK
    full = checks(machine(tmp_path, disk=10**8), artifact, fast=True)["disk"]
    assert (full.verdict, full.exit_code) == (Verdict.FAILURE, RESOURCE)
    assert "df -h" in full.remedy


def test_a_slow_disk(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_vla.device.doctor.machine.read_rate", lambda path: 22e6)
    slow = checks(machine(tmp_path), artifact, fast=True)["disk"]
    assert slow.verdict is Verdict.WARNING
    assert "reads 22 MB/s" in slow.found
    assert slow.remedy.startswith(f"cp -r {artifact} ")


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(("doctor", *arguments))
    return int(end.value.code or 0)


def test_did_you_mean(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (artifact.parent / "polcy", artifact.parent):
        assert call(str(wrong), "--fast", "--json") == ARTIFACT
        report = json.loads(capsys.readouterr().out)
        failed = next(one for one in report["checks"] if one["name"] == "artifact")
        assert failed["remedy"] == f"edge-vla doctor {artifact}"


def test_a_checkpoint_and_nothing(golden_checkpoint: Path, tmp_path: Path) -> None:
    found = checks(machine(tmp_path), golden_checkpoint)["artifact"]
    assert "is a checkpoint" in found.found
    assert found.remedy.startswith(f"edge-vla export {golden_checkpoint}")
    assert "does not exist" in checks(machine(tmp_path), tmp_path / "nowhere" / "at-all")["artifact"].found


def test_the_command_on_an_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(artifact), "-v") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 + len(str(artifact)), "only a path may pass the page's width"
    assert any(line.startswith("ok      golden") for line in lines)
    assert "checks:" in lines[-1]
