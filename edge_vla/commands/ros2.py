"""`edge-vla ros2`: the policy as a ROS 2 lifecycle node; what `ros2 run edge_vla_ros2 policy` starts too."""

from __future__ import annotations

from typing import Annotated

import typer


def ros2(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="ROS's own: --ros-args -p artifact:=DIR -p robot:=arm.toml."),
    ] = None,
) -> None:
    """The policy as a ROS 2 node: images and an instruction in, actions out, with a lifecycle (docs/ros2.md)."""
    from edge_vla.commands.ros2_policies import open_source
    from edge_vla.robot.ros2.run import run

    code = run(open_source, arguments or ())
    if code:
        raise typer.Exit(code)
