"""Kernels compiled ahead: found by the engine on another machine, and refused where they must not run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from edge_vla.artifact import Artifact
from edge_vla.cli import app
from edge_vla.errors import ArtifactError, BackendError, UsageError
from edge_vla.runtime.gpu.ahead.build import lengths
from edge_vla.runtime.gpu.ahead.chips import CHIPS, chip_named
from edge_vla.runtime.gpu.ahead.store import RECORD, KernelsIdentity, find, sources, write
from edge_vla.runtime.gpu.ahead.triton_cache import Kernel
from edge_vla.runtime.gpu.device import CudaDevice
from edge_vla.runtime.gpu.kernels.language import overlap
from edge_vla.runtime.gpu.kernels.tiles import Chip, ahead_of
from tests.runtime.gpu.conftest import HAVE_TRITON

REBUILD = "edge-vla build-engine artifact --chip sm_87"
IDENTITY = KernelsIdentity("sm_87", 16, "3.6.0", "5" * 64)
ARCH = {"backend": "cuda", "arch": 87, "warp_size": 32}
KERNELS = [Kernel(f"_k{n}", f"{n}" * 64, {"target": ARCH, "num_warps": n}, b"cubin" * n) for n in (1, 2, 4)]


def test_what_is_written_is_found(tmp_path: Path) -> None:
    write(tmp_path, IDENTITY, KERNELS[:2])
    write(tmp_path, IDENTITY, KERNELS[1:])  # another prompt's: beside those that are there
    found = {one.key: one for one in find(tmp_path, IDENTITY, REBUILD)}
    assert found == {one.key: one for one in KERNELS}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(IDENTITY, triton="3.7.1"), "Triton 3.6.0"),
        (replace(IDENTITY, sources="6" * 64), "another edge-vla's kernels"),
        (replace(IDENTITY, multiprocessors=8), "16 multiprocessors"),
    ],
)
def test_kernels_of_another_version_are_refused(other: KernelsIdentity, said: str, tmp_path: Path) -> None:
    write(tmp_path, IDENTITY, KERNELS)
    with pytest.raises(BackendError, match=said) as refused:
        find(tmp_path, other, REBUILD)
    assert REBUILD in str(refused.value)


def test_kernels_for_another_chip_are_not_this_chips(tmp_path: Path) -> None:
    """Built on a workstation for a robot they do not stand in the workstation's way; renamed they are refused."""
    other = replace(IDENTITY, chip="sm_90", multiprocessors=132)
    folder = write(tmp_path, IDENTITY, KERNELS)
    assert find(tmp_path, other, REBUILD) == []
    folder.rename(tmp_path / other.name)
    with pytest.raises(ArtifactError, match="holds kernels for sm_87"):
        find(tmp_path, other, REBUILD)


def test_a_record_that_names_another_chip_than_its_kernels_is_refused(tmp_path: Path) -> None:
    other = replace(IDENTITY, chip="sm_90")
    write(tmp_path, other, KERNELS)
    with pytest.raises(ArtifactError, match="is for sm_87, this is sm_90"):
        find(tmp_path, other, REBUILD)


def _torn(folder: Path) -> None:
    path = next(folder.glob("*.cubin"))
    path.write_bytes(path.read_bytes()[:-1])


def _flipped(folder: Path) -> None:
    path = next(folder.glob("*.cubin"))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _missing(folder: Path) -> None:
    next(folder.glob("*.cubin")).unlink()


def _other_words(folder: Path) -> None:
    path = folder / RECORD
    path.write_text(path.read_text(encoding="utf-8").replace('"num_warps": 4', '"num_warps": 8'), encoding="utf-8")


def _torn_record(folder: Path) -> None:
    path = folder / RECORD
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")


@pytest.mark.parametrize("harm", [_torn, _flipped, _missing, _other_words, _torn_record])
def test_bytes_that_differ_are_refused(harm: Any, tmp_path: Path) -> None:
    harm(write(tmp_path, IDENTITY, KERNELS))
    with pytest.raises(ArtifactError, match=r"kernels-sm_87.*--chip sm_87"):
        find(tmp_path, IDENTITY, REBUILD)


def test_the_sources_are_those_of_every_kernel() -> None:
    assert len(sources()) == 64
    assert sources() == sources()


@pytest.mark.parametrize("name", ["sm_87", "sm87", "8.7", "SM_87"])
def test_a_chip_by_its_names(name: str) -> None:
    assert chip_named(name) == Chip((8, 7), 16, 163 * 1024)
    assert chip_named(name, 8).sm_count == 8


@pytest.mark.parametrize(("name", "count"), [("sm_75", None), ("orin", None), ("", None), ("sm_87", 0)])
def test_no_such_chip(name: str, count: int | None) -> None:
    with pytest.raises(UsageError, match=r"choose one of|1 to 1024"):
        chip_named(name, count)


def test_kernels_take_the_branches_of_the_chip_they_are_for() -> None:
    meta = torch.device("meta")
    with ahead_of(CHIPS["sm_90"]):
        assert overlap(meta) == {"EARLY": True, "launch_pdl": True}
        assert Chip.of(meta).sm_count == 132
    with ahead_of(CHIPS["sm_87"]):
        assert overlap(meta) == {"EARLY": False}
    assert overlap(torch.device("cpu")) == {"EARLY": False}


def test_a_prompt_for_each_number_of_rows() -> None:
    """256 patches; padded to 16, seven dimensions: six more rows with a draft in the prefill."""
    found = lengths(256, 40, 7)
    rows = {(-(-(256 + one) // 16), -(-(262 + one) // 16)) for one in range(1, 41)}
    assert {(-(-(256 + one) // 16), -(-(262 + one) // 16)) for one in found} == rows
    assert len(found) == len(rows) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chip", "sm_75"], "choose one of sm_80"),
        (["--chip", "sm_87", "--graph-only"], "leave out --target"),
        (["--chip", "sm_87", "--kernel", "fast"], "--kernel fast"),
        (["--chip", "sm_87", "--longest-prompt", "0"], "--longest-prompt 0"),
    ],
)
def test_what_the_command_refuses(options: list[str], said: str, tiny_artifacts: Mapping[int, Path]) -> None:
    done = CliRunner().invoke(app, ["build-engine", str(tiny_artifacts[4]), *options])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_no_c_compiler_is_said_so() -> None:
    with pytest.raises(BackendError, match="gcc python3-dev"), CudaDevice(torch.device("cpu")).guard("warming up"):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


@pytest.mark.chips
@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed: `make test-kernels`")
@pytest.mark.parametrize("chip", ["sm_87", "sm_90"])
def test_another_machine_compiles_nothing(chip: str, tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    """Built by the command; then the engine's own launches, on real tensors, with Triton's names of another machine."""
    artifact = tiny_artifacts[4]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "workstation")}
    build = ["edge_vla", "build-engine", str(artifact), "--chip", chip, "--longest-prompt", "20", "--json"]
    built = json.loads(_python(build, environment))
    cubins = [*Path(built["path"]).glob("*.cubin")]
    assert len(cubins) == built["kernels"] > 20
    assert {_architecture(path) for path in cubins} == {int(chip.removeprefix("sm_"))}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "robot")
    launched = json.loads(_python(["tests.runtime.gpu.ahead_run", str(artifact), chip], environment))
    assert launched["missed"] == []
    assert launched["hit"] > 20
    assert Artifact(artifact).identity[:16] in built["path"]


def _python(arguments: list[str], environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def _architecture(cubin: Path) -> int:
    """As the ELF header has it: the flags' second byte where the ABI is CUDA 13's, else the first."""
    head = cubin.read_bytes()[:64]
    (flags,) = struct.unpack_from("<I", head, 48)
    return int(flags >> 8 & 0xFF if head[8] >= 8 else flags & 0xFF)
