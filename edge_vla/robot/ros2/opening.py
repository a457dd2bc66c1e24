"""Which end an address names: a topic over DDS, or over rosbridge. Each is imported when it is chosen."""

from __future__ import annotations

from edge_vla.robot.faces import ActionSink, Camera
from edge_vla.robot.ros2.ends import CAMERA_OPTIONS, ROBOT_OPTIONS, SCHEMES, Address
from edge_vla.robot.units import Declaration


def of_ros(text: str) -> bool:
    """Whether a camera or a robot is a topic."""
    return text.startswith(SCHEMES)


def ros_camera(text: str) -> Camera:
    """UsageError for what is no address, BackendError where rclpy or roslibpy is missing."""
    address = Address.parse(text, "--camera", CAMERA_OPTIONS)
    if address.host:
        from edge_vla.robot.rosbridge import BridgeCamera

        return BridgeCamera(address)
    from edge_vla.robot.ros2.links import RosCamera

    return RosCamera(address)


def ros_sink(text: str, robot: Declaration) -> ActionSink:
    """The same, and UsageError for a form of action that does not fit the robot."""
    address = Address.parse(text, "--to", ROBOT_OPTIONS)
    if address.host:
        from edge_vla.robot.rosbridge import BridgeSink

        return BridgeSink(address, robot)
    from edge_vla.robot.ros2.links import RosSink

    return RosSink(address, robot)
