"""Cameras: each holds the newest picture only and has the face `edge_vla.robot.faces.Camera`."""
