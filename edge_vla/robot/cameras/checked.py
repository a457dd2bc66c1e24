"""A camera whose pictures are looked at first: the same ones again and again, or black ones, are no pictures."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.robot.faces import Camera, CameraError, Picture
from edge_vla.robot.units import Sight

SPARSE: Final = 8  # of so many rows and columns, one is looked at for brightness


class Inspector:
    """Looks at one source's pictures in their order: which the policy may see hangs on those before."""

    def __init__(self, name: str, sight: Sight) -> None:
        self._name, self._sight = name, sight
        self._image: NDArray[np.uint8] | None = None
        self._since = 0.0  # when the first of the same pictures was taken

    def look(self, image: NDArray[np.uint8], taken: float) -> None:
        """CameraError `frozen` or `black` for a picture that shows nothing new, or nothing."""
        if self._image is None or not np.array_equal(image, self._image):
            self._image, self._since = image, taken
        same = taken - self._since
        if self._sight.frozen_ms and 1e3 * same > self._sight.frozen_ms:
            raise CameraError(
                "frozen",
                f"{self._name} has sent the same picture for {same:.1f} s: start it again, "
                "or set camera.frozen_ms = 0 in robot.toml for a simulator that stands still",
            )
        bright = float(image[::SPARSE, ::SPARSE].mean())
        if bright < self._sight.black:
            raise CameraError(
                "black",
                f"{self._name} is black ({bright:.1f} of 255): take off its cap, switch on the light, "
                "or set camera.black in robot.toml",
            )


class Checked:
    """A `Camera` around another one, with an `Inspector` between them."""

    def __init__(self, camera: Camera, sight: Sight) -> None:
        self.name, self._camera = camera.name, camera
        self._inspector = Inspector(camera.name, sight)
        self._number = 0  # of the last that was looked at: the same one again is no sign of anything
        self._refused = 0  # the last such one's number: it is not looked at again

    def newest(self, after: int, until: float) -> Picture:
        picture = self._camera.newest(max(after, self._refused), until)
        if picture.number != self._number:
            self._number = picture.number
            try:
                self._inspector.look(picture.image, picture.taken)
            except CameraError:
                self._refused = picture.number
                raise
        return picture

    def close(self) -> None:
        self._camera.close()
