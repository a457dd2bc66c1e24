"""A policy as a ROS 2 lifecycle node, and its topics as camera and robot of `edge-vla act`.

`node.py`, `run.py` and `links.py` import rclpy, so they are imported only when chosen; everything else here is plain
Python that neither knows nor needs ROS. docs/ros2.md shows the topics.
"""
