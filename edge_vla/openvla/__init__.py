"""What OpenVLA's authors fixed, in numpy and Pillow: config, statistics, prompt, image, action tokens."""

from edge_vla.openvla.action import ActionTokens
from edge_vla.openvla.config import PolicyConfig
from edge_vla.openvla.image import ImageContract, as_rgb, preprocess
from edge_vla.openvla.prompt import Prompter, PromptStyle
from edge_vla.openvla.statistics import ActionStatistics, Statistics

__all__ = [
    "ActionStatistics",
    "ActionTokens",
    "ImageContract",
    "PolicyConfig",
    "PromptStyle",
    "Prompter",
    "Statistics",
    "as_rgb",
    "preprocess",
]
