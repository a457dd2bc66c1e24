"""The policy node, from a parameter file and what the command line adds to it.

    ros2 launch edge_vla_ros2 policy.launch.py artifact:=/opt/openvla-int4 robot:=/etc/edge-vla/arm.toml autostart:=true

Any parameter of the node may be given; what is not given stays as the file has it.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(get_package_share_directory("edge_vla_ros2"))
TEXTS = ("artifact", "server", "robot", "unnorm_key", "instruction", "image_topic", "image_transport", "action_form")
TEXTS += ("action_topic", "gripper_topic", "image_qos", "device")
SWITCHES = ("autostart", "exit_on_error", "use_sim_time")


def start(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in (*TEXTS, *SWITCHES)}
    texts = {name: value for name, value in given.items() if value and name in TEXTS}
    switches = {name: value.lower() == "true" for name, value in given.items() if value and name in SWITCHES}
    node = Node(
        package="edge_vla_ros2",
        executable="policy",
        name=LaunchConfiguration("name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), {**texts, **switches}],
        output="screen",
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("params_file", default_value=str(SHARE / "config" / "policy.yaml")),
            DeclareLaunchArgument("name", default_value="edge_vla"),
            DeclareLaunchArgument("namespace", default_value=""),
            *(DeclareLaunchArgument(name, default_value="") for name in (*TEXTS, *SWITCHES)),
            OpaqueFunction(function=start),
        ]
    )
