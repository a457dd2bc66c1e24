"""ROS 2: which distribution this shell has sourced, whether this Python can import it, which middleware carries it."""

from __future__ import annotations

from typing import Final

from edge_vla.device.doctor.check import Found, note, warning
from edge_vla.device.doctor.system import System

PYTHON: Final = {"humble": "3.10", "iron": "3.10", "jazzy": "3.12", "kilted": "3.12", "lyrical": "3.14"}
DEFAULT_RMW: Final = "rmw_fastrtps_cpp"


def ros(system: System) -> Found:
    distribution = system.environment.get("ROS_DISTRO")
    if not distribution:
        there = sorted(path.parent.name for path in (system.root / "opt/ros").glob("*/setup.bash"))
        if there:
            return note(f"ROS 2 {there[-1]} is installed, not sourced (source /opt/ros/{there[-1]}/setup.bash)")
        return note("no ROS 2, only its adapter needs it")
    found = system.importing("rclpy")
    ours = ".".join(map(str, system.python.version[:2]))
    theirs = PYTHON.get(distribution, ours)
    if found.version is None and theirs != ours:
        return warning(
            f"ROS 2 {distribution} is for Python {theirs}, this is {ours}: rclpy does not import",
            f"python{theirs} -m venv --system-site-packages .venv",
        )
    if found.version is None:
        return warning(
            f"ROS 2 {distribution} is sourced, but rclpy does not import: {found.error or 'not on the path'}",
            f"source /opt/ros/{distribution}/setup.bash  # or: sudo apt install ros-{distribution}-ros-base",
        )
    rmw = system.environment.get("RMW_IMPLEMENTATION", DEFAULT_RMW)
    library = f"opt/ros/{distribution}/lib/lib{rmw}.so"
    if (system.root / "opt/ros" / distribution).is_dir() and not (system.root / library).exists():
        return warning(
            f"ROS 2 {distribution}: RMW_IMPLEMENTATION={rmw} is not installed",
            f"sudo apt install ros-{distribution}-{rmw.replace('_', '-')}",
        )
    domain = system.environment.get("ROS_DOMAIN_ID", "0")
    return Found(f"ROS 2 {distribution}, {rmw}, domain {domain}")
