"""`ros2 run edge_vla_ros2 policy`: the same as `edge-vla ros2`."""

import sys


def main() -> None:
    try:
        from edge_vla.cli import main as edge_vla
    except ImportError as error:
        sys.exit(
            f"error: {error}: install edge-vla in the Python that ROS uses, {sys.executable} -m pip install edge-vla"
        )
    edge_vla(["ros2", "--", *sys.argv[1:]])
