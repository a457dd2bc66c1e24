"""Training frames: a random state, what each patch of its picture shows, and what the expert would do.

A frame depends on its seed alone, so that batch n is the same after a resume. States are drawn directly (anywhere, near
a block, carrying) rather than along episodes: the expert has no memory, so that every state has a right action, also
those that only a clumsy policy reaches. Knows nothing of networks.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo_policy import statistics
from benchmarks.demo_policy.tokenizer import ACTION_END, BINS, encode, word_ids
from edge_vla.demo import expert
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import IMAGE_SIDE, World, gripper_points, project, render, toward_camera
from edge_vla.demo.world import (
    BLOCK_COLOURS,
    BLOCK_SIDE,
    BLOCKS,
    GRASP_HEIGHT,
    HEIGHTS,
    PLATE_COLOURS,
    Body,
    Gripper,
    State,
    Task,
    random_bodies,
    random_gripper,
)
from edge_vla.openvla.action import ActionTokens
from edge_vla.spec import ActionSpec

PATCH: Final = 14
GRID: Final = IMAGE_SIDE // PATCH
PATCHES: Final = GRID * GRID
CLASSES: Final = ("nothing", *(f"{c} block" for c in BLOCK_COLOURS), *(f"{c} plate" for c in PLATE_COLOURS))
PROMPT_TOKENS: Final = 11  # prompt tokens after the first, at most, in training
ACTION_INPUTS: Final = 6  # the seventh token is only ever an answer
BRANCH: Final = PROMPT_TOKENS + ACTION_INPUTS
_COVER: Final = {"block": 10.5, "plate": 13.0}  # pixels from a body's centre to patch centres it counts for
TOKENS: Final = ActionTokens(ActionSpec(bins=BINS, end=ACTION_END))


@dataclass(frozen=True, slots=True)
class Batch:
    """Arrays of `n` frames with `k` prompts each."""

    images: NDArray[np.uint8]  # (n, 112, 112, 3)
    patch_class: NDArray[np.int64]  # (n, 64): what covers the patch, an index into CLASSES
    patch_goal: NDArray[np.float32]  # (n, 64, 3): dx, dy, dyaw from gripper to what covers the patch
    patch_local: NDArray[np.float32]  # (n, 64, 3): from patch centre to its centre in patches; its own yaw
    scene: NDArray[np.float32]  # (n, 15): the gripper's pose and opening, then where its parts are in the picture
    held: NDArray[np.int64]  # (n,): class of what is carried
    tokens: NDArray[np.int64]  # (n, k, BRANCH): prompt after its first token, then given action tokens
    answer_starts: NDArray[np.int64]  # (n, k): index in the branch of the token that precedes the first action token
    actions: NDArray[np.float32]  # (n, k, 7): normalised, continuous
    pointer_rows: NDArray[np.int64]  # (n, k, 2): index in the branch of the block's and the plate's colour word
    pointer_patches: NDArray[np.float32]  # (n, k, 2, 64): patches of the named thing; all zero if nothing is named

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _near(rng: np.random.Generator, look: World, x: float, y: float, yaw: float, floor: float) -> Gripper:
    """A gripper pose in the funnel over a goal, more often close than far.

    Half of the poses are pulled towards the camera: along the line of sight the picture hardly changes, and there a
    policy mistakes "high and short of the goal" for "low and at the goal".
    """
    spread = math.exp(rng.uniform(math.log(0.002), math.log(0.06)))
    angle = rng.uniform(-math.pi, math.pi)
    lean = math.exp(rng.uniform(math.log(0.005), math.log(0.25)))
    height = floor + min(0.105, 2.0 * spread) * rng.uniform(0.5, 1.3) + abs(rng.normal(0.0, 0.006))
    roll, pitch = rng.normal(0, lean), rng.normal(0, lean)
    turn = rng.normal(0, math.exp(rng.uniform(math.log(0.02), math.log(0.4))))
    usual = min(1.0, 0.55 + 2.5 * math.hypot(spread, height - floor))
    opening = rng.choice([0.0, rng.uniform(0.0, 1.0), usual], p=[0.15, 0.12, 0.73])
    pulled = float(rng.uniform(-0.02, 0.10)) * toward_camera(look) if rng.random() < 0.5 else np.zeros(3)
    return Gripper(
        x=float(np.clip(x + spread * math.cos(angle) + pulled[0], -0.18, 0.18)),
        y=float(np.clip(y + spread * math.sin(angle) + pulled[1], -0.18, 0.18)),
        z=float(np.clip(height + pulled[2], *HEIGHTS)),
        roll=float(np.clip(roll, -0.45, 0.45)),
        pitch=float(np.clip(pitch, -0.45, 0.45)),
        yaw=float(np.clip(yaw + turn, -0.8, 0.8)),
        opening=float(opening),
    )


def moment(rng: np.random.Generator, look: World, blocks_on_table: tuple[int, int] = BLOCKS) -> tuple[State, list[str]]:
    """A random state, and the block colours that its prompts should name first."""
    bodies = random_bodies(rng, blocks_on_table)
    blocks = [i for i, body in enumerate(bodies) if body.kind == "block"]
    plates = [body for body in bodies if body.kind == "plate"]
    focus = int(rng.choice(blocks))
    body = bodies[focus]
    mode = rng.random()
    if mode < 0.25:
        gripper = random_gripper(rng)
        return State(bodies, gripper), [body.colour]
    if mode < 0.68:
        return State(bodies, _near(rng, look, body.x, body.y, body.yaw, GRASP_HEIGHT - 0.002)), [body.colour]
    place = rng.random()
    if place < 0.45:
        plate = plates[int(rng.integers(len(plates)))]
        gripper = _near(rng, look, plate.x, plate.y, 0.0, expert.PLACE_HEIGHT - 0.006)
    elif place < 0.7:
        gripper = _near(rng, look, body.x, body.y, body.yaw, GRASP_HEIGHT - 0.002)
    else:
        gripper = random_gripper(rng)
    gripper = Gripper(
        gripper.x,
        gripper.y,
        gripper.z,
        gripper.roll * 0.4,
        gripper.pitch * 0.4,
        gripper.yaw,
        float(rng.uniform(0, 0.1)),
    )
    carried = Body("block", body.colour, gripper.x, gripper.y, gripper.yaw)
    return State((*bodies[:focus], carried, *bodies[focus + 1 :]), gripper, focus), [body.colour]


def tasks(rng: np.random.Generator, state: State, first: Sequence[str], count: int, puts: bool) -> list[Task]:
    """`count` tasks for one state, the first of them about the `first` blocks; repeated only where too few exist."""
    blocks = [body.colour for body in state.bodies if body.kind == "block"]
    plates = [body.colour for body in state.bodies if body.kind == "plate"] if puts else []
    every = [Task(block, plate) for block in blocks for plate in (None, *plates)]
    wanted = [task for task in every if task.block in first]
    others = [task for task in every if task.block not in first]
    if state.held is not None:  # what to do with a thing in hand is asked about that thing, mostly
        keep = [wanted[i] for i in rng.permutation(len(wanted))]
        keep += [others[int(rng.integers(len(others)))]] if rng.random() < 0.4 else []
        while len(keep) < count:
            keep.append(wanted[int(rng.integers(len(wanted)))])
        return keep[:count] if len(keep) <= count else [*keep[: count - 1], keep[-1]]
    chosen = [wanted[int(rng.integers(len(wanted)))]]
    rest = [task for task in every if task != chosen[0]]
    chosen += [rest[i] for i in rng.permutation(len(rest))[: count - 1]]
    while len(chosen) < count:
        chosen.append(every[int(rng.integers(len(every)))])
    return chosen


def _centres() -> NDArray[np.float64]:
    along = (np.arange(GRID) + 0.5) * PATCH
    return np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)


_PATCH_CENTRES: Final = _centres()


def patch_owner(state: State, look: World) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(64,) index of the body that a patch belongs to, or -1: the nearest centre within its cover, blocks first.

    And (bodies, 2): the bodies' centres in pixels.
    """
    heights = [
        max(0.0, state.gripper.z - BLOCK_SIDE / 2) + BLOCK_SIDE / 2 if i == state.held else BLOCK_SIDE / 2
        for i in range(len(state.bodies))
    ]
    points = [(b.x, b.y, h if b.kind == "block" else 0.0) for b, h in zip(state.bodies, heights, strict=True)]
    pixels = project(look, np.array(points))
    away = np.linalg.norm(_PATCH_CENTRES[:, None] - pixels[None], axis=2)  # (64, bodies)
    cover = np.array([_COVER[body.kind] for body in state.bodies])
    ratio = np.where(away <= cover, away / cover, np.inf)
    ratio[:, [body.kind == "plate" for body in state.bodies]] += 0.6
    owner = np.where(np.isfinite(ratio.min(axis=1)), ratio.argmin(axis=1), -1)
    for i in np.argsort([body.kind == "block" for body in state.bodies], kind="stable"):
        column, row = (int(np.clip(v // PATCH, 0, GRID - 1)) for v in pixels[i])
        if state.bodies[i].kind == "block" or owner[row * GRID + column] < 0:
            owner[row * GRID + column] = i
    return owner, pixels


def _gripper_in_picture(gripper: Gripper, look: World) -> list[float]:
    """Palm ends, mast top and the palm's shadow: (u, v) each, in picture widths from the centre."""
    points = gripper_points(gripper)
    foot = points[6] * (1, 1, 0)
    pixels = project(look, np.stack([points[4], points[5], points[7], foot]))
    return [float(v) for v in (pixels / IMAGE_SIDE - 0.5).ravel()]


@cache
def _words() -> dict[str, int]:
    return word_ids()


def label_tokens(normalised: NDArray[np.float64]) -> NDArray[np.int64]:
    """The token ids that a perfect policy predicts.

    OpenVLA encodes a value on the upper edge with an id of its own, which decodes like its neighbour. Training labels
    leave that id out, so that it is never predicted; expecting it would count every such prediction as wrong.
    """
    return np.asarray(np.maximum(TOKENS.encode(normalised), ACTION_END - BINS + 1))


def _given(rng: np.random.Generator, actions: NDArray[np.float64], misled: float) -> NDArray[np.int64]:
    """The action tokens that follow a prompt: the expert's, or for a share `misled` of the prompts misleading ones.

    Stages with misleading tokens keep the upper edge's own id, so that their frames stay as they were trained on.
    """
    if not misled:
        return label_tokens(actions)[:, :ACTION_INPUTS]
    tokens = TOKENS.encode(actions)
    k = len(tokens)
    for row in range(k):
        luck = rng.random()
        if luck < misled / 2:
            tokens[row] = TOKENS.encode(actions[int(rng.integers(k))] * rng.uniform(-1, 1))
        elif luck < misled:
            tokens[row] = TOKENS.encode(actions[row] + rng.normal(0, 0.15, actions.shape[1]))
    return tokens[:, :ACTION_INPUTS]


def batch(
    look: World,
    first_seed: int,
    size: int,
    prompts: int,
    puts: bool = True,
    wordings: int = 64,
    blocks: tuple[int, int] = BLOCKS,
    misled: float = 0.5,
) -> Batch:
    """Frames `first_seed` to `first_seed + size - 1`."""
    seeds = range(first_seed, first_seed + size)
    rows = [_frame(look, seed, prompts, puts, wordings, blocks, misled) for seed in seeds]
    return Batch(**{field.name: np.stack([getattr(row, field.name) for row in rows]) for field in fields(Batch)})


def _frame(
    look: World, seed: int, prompts: int, puts: bool, wordings: int, blocks: tuple[int, int], misled: float
) -> Batch:
    rng = np.random.default_rng(seed)
    state, first = moment(rng, look, blocks)
    owner, pixels = patch_owner(state, look)
    gripper = state.gripper
    names = np.array([CLASSES.index(f"{b.colour} {b.kind}") for b in state.bodies] + [0])
    goals = np.array(
        [(b.x - gripper.x, b.y - gripper.y, b.yaw - gripper.yaw) for b in state.bodies] + [(0.0, 0.0, 0.0)]
    )
    centres = np.concatenate([pixels, np.zeros((1, 2))])[owner]
    yaws = np.array([body.yaw for body in state.bodies] + [0.0])[owner]
    local = np.concatenate([(centres - _PATCH_CENTRES) / PATCH, yaws[:, None]], axis=1)
    tokens = np.zeros((prompts, BRANCH), dtype=np.int64)
    answer_starts = np.zeros(prompts, dtype=np.int64)
    pointer_rows = np.zeros((prompts, 2), dtype=np.int64)
    pointer_patches = np.zeros((prompts, 2, PATCHES), dtype=np.float32)
    chosen = tasks(rng, state, first, prompts, puts)
    actions = statistics.normalise(np.stack([expert.act(state, task) for task in chosen]))
    given = _given(rng, actions, misled)
    words = _words()
    for row, task in enumerate(chosen):
        ids = encode(phrase(task, int(rng.integers(wordings))))[1:]
        tokens[row, : len(ids)] = ids
        tokens[row, len(ids) : len(ids) + ACTION_INPUTS] = given[row]
        answer_starts[row] = len(ids) - 1
        for slot, kind, colour in ((0, "block", task.block), (1, "plate", task.plate)):
            if colour is not None:
                pointer_rows[row, slot] = ids.index(words[colour])
                index = next(i for i, b in enumerate(state.bodies) if b.kind == kind and b.colour == colour)
                pointer_patches[row, slot] = owner == index
    return Batch(
        images=np.asarray(render(state, look)),
        patch_class=names[owner],
        patch_goal=goals[owner].astype(np.float32),
        patch_local=local.astype(np.float32),
        scene=np.array([*astuple(gripper), *_gripper_in_picture(gripper, look)], np.float32),
        held=np.asarray(0 if state.held is None else names[state.held]),
        tokens=tokens,
        answer_starts=answer_starts,
        actions=actions.astype(np.float32),
        pointer_rows=pointer_rows,
        pointer_patches=pointer_patches,
    )
