"""Pictures of the tabletop: a perspective camera, flat shading, Pillow polygons at twice the size.

Knows the two worlds (a camera, a table, a light and a palette each) and how to draw a state; the same state always
gives the same bytes. Knows nothing of tasks, actions or networks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edge_vla.demo.world import BLOCK_SIDE, PLATE_RADIUS, Body, Gripper, State
from edge_vla.errors import UsageError

Rgb: TypeAlias = tuple[int, int, int]
Points: TypeAlias = NDArray[np.float64]

IMAGE_SIDE: Final = 112
OVERSAMPLE: Final = 2


@dataclass(frozen=True, slots=True)
class World:
    """Camera pose (metres, degrees) and appearance."""

    number: int
    azimuth: float
    elevation: float
    distance: float
    zoom: float  # picture widths per radian, roughly
    table: Rgb
    floor: Rgb
    shadow: Rgb
    light: tuple[float, float, float]  # brightness of a block's top, x sides, y sides
    stripe: Rgb  # along one edge of every block's top: shows the block's yaw
    colours: Mapping[str, Rgb]
    mast: Rgb = (84, 88, 98)
    knob: Rgb = (10, 10, 14)  # the ball on the mast: shows roll and pitch
    fingers: tuple[Rgb, Rgb] = ((255, 0, 170), (0, 245, 130))  # left and right differ: shows yaw


WORLDS: Final[Mapping[int, World]] = {
    1: World(
        number=1,
        azimuth=0.0,
        elevation=52.0,
        distance=0.84,
        zoom=1.52,
        table=(196, 176, 148),
        floor=(92, 98, 108),
        shadow=(104, 90, 72),
        light=(1.0, 0.62, 0.78),
        stripe=(250, 250, 250),
        colours={
            "red": (214, 40, 40),
            "green": (44, 160, 60),
            "blue": (40, 84, 214),
            "yellow": (240, 210, 30),
            "purple": (138, 48, 176),
            "orange": (244, 128, 24),
            "white": (246, 246, 246),
            "black": (24, 24, 26),
            "pink": (246, 150, 190),
            "cyan": (70, 206, 220),
        },
    ),
    2: World(
        number=2,
        azimuth=30.0,
        elevation=47.0,
        distance=0.84,
        zoom=1.42,
        table=(150, 168, 176),
        floor=(72, 60, 66),
        shadow=(82, 96, 106),
        light=(0.88, 1.0, 0.55),
        stripe=(236, 226, 196),
        colours={
            "red": (150, 24, 52),
            "green": (150, 196, 60),
            "blue": (98, 142, 200),
            "yellow": (212, 186, 96),
            "purple": (96, 62, 128),
            "orange": (206, 100, 58),
            "white": (206, 200, 186),
            "black": (14, 18, 26),
            "pink": (216, 108, 148),
            "cyan": (36, 150, 160),
        },
    ),
}


def world(number: int) -> World:
    if number not in WORLDS:
        raise UsageError(f"world {number}: choose one of {sorted(WORLDS)}")
    return WORLDS[number]


@cache
def _camera(number: int) -> tuple[Points, Points]:
    """Rotation (rows: right, down, forward) and position."""
    look = world(number)
    azimuth, elevation = math.radians(look.azimuth), math.radians(look.elevation)
    centre = np.array([0.0, 0.0, 0.055])
    back = np.array(
        [
            -math.sin(azimuth) * math.cos(elevation),
            -math.cos(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    forward = -back
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    return np.stack([right, down, forward]), centre + look.distance * back


def toward_camera(world: World) -> Points:
    """Unit vector (3,) from the table's centre to the camera."""
    toward: Points = -_camera(world.number)[0][2]
    return toward


def project(look: World, points: Points) -> Points:
    """World metres (n, 3) -> picture pixels (n, 2), x right and y down, at IMAGE_SIDE."""
    rotation, eye = _camera(look.number)
    rotated = (points - eye) @ rotation.T
    return IMAGE_SIDE * (0.5 + look.zoom * rotated[:, :2] / rotated[:, 2:])


def _block_points(body: Body, height: float) -> Points:
    """Eight corners: the bottom four, then the top four, counter-clockwise."""
    half = BLOCK_SIDE / 2
    c, s = math.cos(body.yaw) * half, math.sin(body.yaw) * half
    flat = [(c - s, s + c), (-c - s, -s + c), (-c + s, -s - c), (c + s, s - c)]
    return np.array([(body.x + u, body.y + v, z) for z in (height, height + BLOCK_SIDE) for u, v in flat])


_CIRCLE: Final = np.array([(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 24, endpoint=False)])


def _plate_points(body: Body) -> Points:
    flat = np.concatenate([_CIRCLE, _CIRCLE * 0.66]) * PLATE_RADIUS + (body.x, body.y)
    return np.concatenate([flat, np.full((len(flat), 1), 0.003)], axis=1)


def gripper_points(gripper: Gripper) -> Points:
    """Fingertips (2), finger roots (2), palm ends (2), mast foot, mast top: in world metres."""
    cr, sr = math.cos(gripper.roll), math.sin(gripper.roll)
    cp, sp = math.cos(gripper.pitch), math.sin(gripper.pitch)
    cy, sy = math.cos(gripper.yaw), math.sin(gripper.yaw)
    lean_x = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    lean_y = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1.0]])
    gap = 0.016 + 0.022 * gripper.opening
    local = np.array(
        [
            (-gap, 0, 0),
            (gap, 0, 0),
            (-gap, 0, 0.045),
            (gap, 0, 0.045),
            (-0.042, 0, 0.045),
            (0.042, 0, 0.045),
            (0, 0, 0.045),
            (0, 0, 0.125),
        ]
    )
    placed: Points = local @ (lean_y @ lean_x @ turn).T + (gripper.x, gripper.y, gripper.z)
    return placed


Line: TypeAlias = list[tuple[float, float]]


class _Canvas:
    """A Pillow drawing in picture coordinates times OVERSAMPLE."""

    def __init__(self, look: World) -> None:
        width = IMAGE_SIDE * OVERSAMPLE
        self.look = look
        self.image = Image.new("RGB", (width, width), look.floor)
        self.draw = ImageDraw.Draw(self.image)

    def points(self, points: Points) -> Line:
        return [(u, v) for u, v in (project(self.look, points) * OVERSAMPLE).tolist()]

    def polygon(self, line: Line, colour: Rgb, outline: Rgb | None = None) -> None:
        self.draw.polygon(line, fill=colour, outline=outline)

    def line(self, line: Line, colour: Rgb, width: int) -> None:
        self.draw.line(line, fill=colour, width=width)

    def dot(self, at: tuple[float, float], radius: float, colour: Rgb) -> None:
        u, v = at
        self.draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=colour)

    def finish(self) -> Image.Image:
        return self.image.reduce(OVERSAMPLE)


def _shade(colour: Rgb, light: float) -> Rgb:
    r, g, b = colour
    return int(r * light), int(g * light), int(b * light)


def _draw_block(canvas: _Canvas, body: Body, height: float) -> None:
    look = canvas.look
    corners = _block_points(body, height)
    pixels = canvas.points(corners)
    eye = _camera(look.number)[1]
    colour = look.colours[body.colour]
    top, along_x, along_y = look.light
    for i in range(4):
        j = (i + 1) % 4
        face = (corners[i, :2] + corners[j, :2]) / 2 - (body.x, body.y)
        if float(face @ (eye[:2] - (body.x, body.y) - face)) > 0:
            weight = float(face[0] ** 2 / (face @ face))
            light = along_x * weight + along_y * (1 - weight)
            canvas.polygon([pixels[i], pixels[j], pixels[j + 4], pixels[i + 4]], _shade(colour, light))
    canvas.polygon(pixels[4:], _shade(colour, top), outline=_shade(colour, 0.45))
    near = corners[6] - corners[5]  # along the top, from the edge that the stripe lies on
    edge = [corners[4], corners[5], corners[5] + 0.32 * near, corners[4] + 0.32 * near]
    canvas.polygon(canvas.points(np.stack(edge)), look.stripe)


def _draw_shadow(canvas: _Canvas, gripper: Gripper) -> None:
    flat = gripper_points(gripper)
    flat[:, 2] = 0.001
    pixels = canvas.points(flat)
    canvas.line([pixels[4], pixels[5]], canvas.look.shadow, 8)
    canvas.line([pixels[6], pixels[7]], canvas.look.shadow, 4)


def _draw_gripper(canvas: _Canvas, gripper: Gripper) -> None:
    look = canvas.look
    pixels = canvas.points(gripper_points(gripper))
    canvas.line([pixels[6], pixels[7]], look.mast, 6)
    canvas.dot(pixels[7], 8, look.knob)
    for index, colour in enumerate(look.fingers):
        canvas.line([pixels[4 + index], pixels[6]], colour, 8)
        canvas.line([pixels[index], pixels[2 + index]], colour, 6)


def render(state: State, look: World) -> Image.Image:
    """A 112 by 112 RGB picture of the state."""
    canvas = _Canvas(look)
    edge = 0.20
    canvas.polygon(
        canvas.points(np.array([(-edge, -edge, 0), (edge, -edge, 0), (edge, edge, 0), (-edge, edge, 0.0)])), look.table
    )
    for body in state.bodies:
        if body.kind == "plate":
            pixels = canvas.points(_plate_points(body))
            colour = look.colours[body.colour]
            canvas.polygon(pixels[:24], colour, outline=_shade(colour, 0.5))
            canvas.polygon(pixels[24:], _shade(colour, 0.84))
    _draw_shadow(canvas, state.gripper)
    forward = _camera(look.number)[0][2]
    blocks = [(i, body) for i, body in enumerate(state.bodies) if body.kind == "block"]
    blocks.sort(key=lambda item: -float(forward[0] * item[1].x + forward[1] * item[1].y))
    gripper = state.gripper
    depth = float(forward[0] * gripper.x + forward[1] * gripper.y)
    drawn = False
    for i, body in blocks:
        nearer = float(forward[0] * body.x + forward[1] * body.y) < depth - BLOCK_SIDE * 0.6
        if nearer and not drawn and gripper.z < BLOCK_SIDE:
            _draw_gripper_and_load(canvas, state)
            drawn = True
        if i != state.held:
            _draw_block(canvas, body, 0.0)
    if not drawn:
        _draw_gripper_and_load(canvas, state)
    return canvas.finish()


def _draw_gripper_and_load(canvas: _Canvas, state: State) -> None:
    if state.held is not None:
        _draw_block(canvas, state.bodies[state.held], max(0.0, state.gripper.z - BLOCK_SIDE / 2))
    _draw_gripper(canvas, state.gripper)
