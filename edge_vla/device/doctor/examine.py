"""All checks in order, each timed, none able to stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from edge_vla.device.doctor import cpu, jetson, machine, packages, ros
from edge_vla.device.doctor.check import (
    ARTIFACT,
    BACKEND,
    RESOURCE,
    SCHEMA,
    Check,
    Found,
    Report,
    Verdict,
    exit_code,
    failure,
    note,
    warning,
)
from edge_vla.device.doctor.system import System
from edge_vla.errors import EdgeVLAError
from edge_vla.version import __version__

GROUPS: Final = ("artifact", "python", "gpu", "cpu", "vision", "jetson", "memory", "robot")
OnCheck = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A check before it has run; None from it where it does not apply."""

    group: str
    name: str
    look: Callable[[System], Found | None]


MACHINE: Final = (
    Row("python", "python", packages.python),
    Row("python", "torch", packages.torch),
    Row("python", "numpy", packages.numpy),
    Row("python", "torchvision", packages.torchvision),
    Row("gpu", "cuda", packages.cuda),
    Row("gpu", "triton", packages.triton),
    Row("cpu", "instructions", cpu.instructions),
    Row("cpu", "engine", cpu.engine),
    Row("cpu", "threads", cpu.threads),
    Row("vision", "onnxruntime", packages.onnxruntime),
    Row("vision", "tensorrt", packages.tensorrt),
    Row("jetson", "jetpack", jetson.release),
    Row("jetson", "power mode", jetson.power_mode),
    Row("memory", "memory", machine.memory),
    Row("memory", "swap", machine.swap),
    Row("robot", "clocks", jetson.clocks),
    Row("robot", "heat", machine.heat),
    Row("robot", "time", machine.clock),
    Row("robot", "ros2", ros.ros),
)


def examine(
    system: System, artifact: Path | None = None, *, fast: bool = False, on_check: OnCheck = lambda _: None
) -> Report:
    """Run every check; with `fast` none that reads all the weights. `on_check` is called with the name of each."""
    checks: list[Check] = []

    def look(row: Row) -> Check | None:
        on_check(row.name)
        found = _looked(row, system)
        if found is not None:
            checks.append(found)
        return found

    for row in MACHINE:
        look(row)
    look(Row("memory", "disk", partial(machine.disk, artifact=artifact)))
    if artifact is not None:
        for row in _of_artifact(artifact, system, fast):
            checked = look(row)
            if checked is None or checked.verdict is Verdict.FAILURE:
                break  # the later ones need what the earlier ones checked
    return Report(
        schema=SCHEMA,
        version=__version__,
        artifact=None if artifact is None else str(artifact),
        checks=tuple(checks),
        exit_code=exit_code(checks),
    )


def _of_artifact(directory: Path, system: System, fast: bool) -> list[Row]:
    if system.torch.version is None:
        return [Row("artifact", "artifact", lambda _: note("unchecked: torch does not import"))]
    from edge_vla.device.doctor.artifact import Examined

    one = Examined(directory, system)
    looks = {"artifact": one.structure, "fits": one.fits}
    if not fast:
        looks |= {"hashes": one.hashes, "kernels": one.kernels, "golden": one.golden}
    return [Row("artifact", name, _asking(ask)) for name, ask in looks.items()]


def _asking(ask: Callable[[], Found]) -> Callable[[System], Found]:
    return lambda _: ask()


def _looked(row: Row, system: System) -> Check | None:
    started = time.perf_counter()
    try:
        found = row.look(system)
    except EdgeVLAError as error:
        code = error.exit_code if error.exit_code in (BACKEND, RESOURCE) else ARTIFACT
        found = failure(str(error), "edge-vla verify ARTIFACT  # the same in detail", code)
    except (OSError, MemoryError) as error:
        found = failure(f"{type(error).__name__}: {error}", "df -h; free -h; ls -l ARTIFACT", RESOURCE)
    except Exception as error:  # noqa: BLE001  a check that fails must not hide the others
        found = warning(f"could not be checked: {type(error).__name__}: {error}", "EDGE_VLA_DEBUG=1 edge-vla doctor -v")
    if found is None:
        return None
    return Check(
        found.found,
        found.verdict,
        found.remedy,
        found.exit_code,
        group=row.group,
        name=row.name,
        seconds=round(time.perf_counter() - started, 3),
    )
