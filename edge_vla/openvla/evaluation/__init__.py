"""What published evaluation scripts do to a camera's image before OpenVLA's processor gets it, as a named choice.

Bit for bit what their TensorFlow and OpenCV compute, with numpy and Pillow. What scripts do to actions is theirs.
"""

from edge_vla.openvla.evaluation.scripts import SCRIPTS, Preprocess, chosen, described, pixels, prepare

__all__ = ["SCRIPTS", "Preprocess", "chosen", "described", "pixels", "prepare"]
