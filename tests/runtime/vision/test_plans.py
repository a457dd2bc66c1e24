"""Built engines on disk: whole, of this graph, library and GPU, or a typed error with the command that builds again."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.errors import ArtifactError, BackendError, EdgeVLAError, UsageError
from edge_vla.runtime.vision import ROW_LOADERS
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.tensorrt import library as libraries
from edge_vla.runtime.vision.tensorrt.library import RTX, TENSORRT, library, remedy
from edge_vla.runtime.vision.tensorrt.plan import (
    PlanIdentity,
    building,
    device_cache,
    find_plan,
    write_plan,
)

REBUILD = "edge-vla build-engine out --precision fp16"
IDENTITY = PlanIdentity("a" * 64, Precision.FP16, "TensorRT 10.3.0", "Orin (sm_87)", "bf16")
CONTENT = bytes(range(256)) * 40


def test_what_was_written_is_found(tmp_path: Path) -> None:
    path = write_plan(tmp_path, IDENTITY, memoryview(CONTENT))
    assert find_plan(tmp_path, IDENTITY, REBUILD) == path
    assert path.read_bytes() == CONTENT
    assert write_plan(tmp_path, IDENTITY, CONTENT[:-1]) == path  # built again: the old one is gone
    assert find_plan(tmp_path, IDENTITY, REBUILD).read_bytes() == CONTENT[:-1]
    assert {one.suffix for one in tmp_path.iterdir()} == {".plan", ".json"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"library": "TensorRT 10.16.2"}, "TensorRT 10.3.0"),
        ({"gpu": "Thor (sm_110)"}, "Orin (sm_87)"),
        ({"graph": "b" * 64}, "another graph"),
        ({"precision": Precision.INT8}, "fp16"),
        ({"format": 2}, "another edge-vla"),
    ],
)
def test_a_foreign_plan_is_named_with_what_was_expected(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    write_plan(tmp_path, IDENTITY, CONTENT)
    wanted = replace(IDENTITY, **changes)  # type: ignore[arg-type]
    with pytest.raises(BackendError) as error:
        find_plan(tmp_path, wanted, REBUILD)
    text = str(error.value)
    assert f"no {wanted.precision.value} engine for {wanted.library} on {wanted.gpu}" in text
    assert text.split("the nearest engine is for ")[1] == f"{said}: {REBUILD}"
    assert text.endswith(REBUILD)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(CONTENT[:-7]), "has 10233 bytes, 10240 were written: it is truncated"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.write_bytes(b"\1" + CONTENT[1:]), "it was changed"),
    ],
)
def test_a_damaged_plan_is_never_loaded(damage: object, said: str, tmp_path: Path) -> None:
    path = write_plan(tmp_path, IDENTITY, CONTENT)
    assert callable(damage)
    damage(path)
    with pytest.raises(ArtifactError, match=said) as error:
        find_plan(tmp_path, IDENTITY, REBUILD)
    assert str(error.value).endswith(REBUILD)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"identity": {}, "file": {}}'])
def test_a_plan_without_its_record_does_not_exist(content: str | None, tmp_path: Path) -> None:
    """As after a crash between the two, or a copy of the plan alone."""
    record = write_plan(tmp_path, IDENTITY, CONTENT).with_suffix(".json")
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    with pytest.raises(BackendError, match="none was built"):
        find_plan(tmp_path, IDENTITY, REBUILD)


def test_a_plan_of_one_name_with_another_record_is_refused(tmp_path: Path) -> None:
    mine, other = write_plan(tmp_path, IDENTITY, CONTENT), replace(IDENTITY, gpu="Thor (sm_110)")
    theirs = write_plan(tmp_path, other, CONTENT)
    theirs.with_suffix(".json").replace(mine.with_suffix(".json"))
    with pytest.raises(ArtifactError, match=r"record of .* is of an engine for Thor \(sm_110\): edge-vla build"):
        find_plan(tmp_path, IDENTITY, REBUILD)


def test_a_record_without_its_plan_is_not_the_nearest(tmp_path: Path) -> None:
    write_plan(tmp_path, IDENTITY, CONTENT).unlink()
    with pytest.raises(BackendError, match="none was built"):
        find_plan(tmp_path, IDENTITY, REBUILD)


def test_two_builds_at_once_take_turns(tmp_path: Path) -> None:
    """Else they share the file that becomes the plan, and one's record stands beside the other's plan."""
    said = list[str]()

    def second() -> None:
        with building(tmp_path, lambda: said.append("waits")):
            said.append("second")

    other = threading.Thread(target=second)
    with building(tmp_path, lambda: said.append("no")):
        other.start()
        while not said:
            time.sleep(0.01)
        said.append("first ends")
    other.join()
    assert said == ["waits", "first ends", "second"]


def test_the_cache_is_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = device_cache("f" * 64)
    assert folder == tmp_path / "edge-vla" / "engines" / ("f" * 16)
    assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "edge-vla").chmod(0o777)
    with pytest.raises(EdgeVLAError, match="chmod go-w"):
        device_cache("f" * 64)


def test_a_missing_library_names_this_platforms_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (TENSORRT, RTX):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(libraries, "TEGRA", tmp_path / "absent")
    with pytest.raises(BackendError, match="pip install tensorrt-rtx"):
        library((RTX,))
    with pytest.raises(BackendError, match="tensorrt or tensorrt_rtx does not import"):
        library()
    (tmp_path / "nv_tegra_release").touch()
    monkeypatch.setattr(libraries, "TEGRA", tmp_path / "nv_tegra_release")
    assert "apt install tensorrt python3-libnvinfer" in remedy()


@pytest.mark.parametrize(("version", "fits"), [("10.3.0", True), ("10.16.2", True), ("11.4.1", True), ("8.6.1", False)])
def test_versions_from_jetpack_6_on(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(TENSORRT)
    setattr(module, "__version__", version)  # noqa: B010
    monkeypatch.setitem(sys.modules, TENSORRT, module)
    if fits:
        assert str(library()) == f"TensorRT {version}"
    else:
        with pytest.raises(BackendError, match=r"8\.6\.1 is too old, 10\.3 or later"):
            library()


@pytest.mark.parametrize("name", [*ROW_LOADERS, "onnx/int8", "onnx-openvino"])
def test_a_backend_asked_for_by_name_runs_or_raises(
    name: str, tiny_artifacts: Mapping[int, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if torch.cuda.is_available():
        pytest.skip("says what a machine without a GPU answers")
    with pytest.raises(BackendError, match=r"cuda|does not import|build-engine|pip install"):
        edge_vla.load(tiny_artifacts[16], "cpu", name, check=False)


def test_auto_is_never_one_of_them(tiny_artifacts: Mapping[int, Path]) -> None:
    chosen = edge_vla.load(tiny_artifacts[16], "cpu", check=False).network.chosen["vision"]
    assert chosen.partition("@")[0] in ("native", "torch")


def test_the_gpu_engine_names_what_writes_its_rows(tiny_artifacts: Mapping[int, Path]) -> None:
    from edge_vla.runtime.gpu.load import load_artifact

    artifact = Artifact(tiny_artifacts[16])
    with pytest.raises(UsageError, match=r"onnx writes no image rows on the GPU.*tensorrt/int8"):
        load_artifact(artifact, torch.bfloat16, torch.device("cuda"), "onnx", "triton")
