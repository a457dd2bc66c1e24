"""Recorded frames, from a folder of images or from a LeRobot dataset."""

from pathlib import Path

from edge_vla.data.frames import BROKEN, Frame, episodes, open_image, read_folder, synthetic_image, write_frames
from edge_vla.data.lerobot import find_dataset, read_lerobot
from edge_vla.data.pictures import check_pictures
from edge_vla.data.recorded import check_recorded, sound_action
from edge_vla.data.series import Shown, series

__all__ = [
    "BROKEN",
    "Frame",
    "Shown",
    "check_pictures",
    "check_recorded",
    "episodes",
    "open_image",
    "read_frames",
    "series",
    "sound_action",
    "synthetic_image",
    "write_frames",
]


def read_frames(directory: Path) -> list[Frame]:
    """All frames of a folder, in the order of its index; or of a LeRobot dataset, or its camera DATASET/NAME.

    Raises FrameError for what cannot be read.
    """
    if found := find_dataset(directory):
        return read_lerobot(*found)
    return read_folder(directory)
