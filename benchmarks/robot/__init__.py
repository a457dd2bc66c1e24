"""Measurements of `edge-vla act`: the demo world as camera and robot, over real sockets, with faults at known times.

`ros2_messages` is the same question of the ROS 2 node.
"""
