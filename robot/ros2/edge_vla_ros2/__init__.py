"""Where ROS finds the node; the node itself is `edge_vla.robot.ros2`."""
