"""The tabletop: blocks, plates, one gripper, and what an action does to them.

Knows geometry and state in metres and radians, when a task succeeds or fails, and which seeds are for training and
which for evaluation. Knows nothing of pixels, words or networks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Action: TypeAlias = NDArray[np.float64]  # (7,) dx dy dz droll dpitch dyaw opening

BLOCK_COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "orange")
PLATE_COLOURS: Final = ("white", "black", "pink", "cyan")
BLOCKS: Final = (3, 5)  # on a table: at least, at most
TRAINING_SEEDS: Final = range(0, 1_000_000_000)
EVALUATION_SEEDS: Final = range(1_000_000_000, 1_001_000_000)
FRAME_SEEDS: Final = EVALUATION_SEEDS[500_000:900_000]  # single frames; closed-loop episodes use the first seeds
RECORDED_SEEDS: Final = EVALUATION_SEEDS[900_000:950_000]  # recorded episodes; no closed-loop episode starts from one
MAX_STEPS: Final = 40  # of an episode

BLOCK_SIDE: Final = 0.044
PLATE_RADIUS: Final = 0.045
REACH: Final = 0.15  # block centres lie within this of the table's centre, in x and in y
HEIGHTS: Final = (0.020, 0.150)  # of the point between the fingertips
GRASP_HEIGHT: Final = 0.022
LIFTED_HEIGHT: Final = 0.085
TILT_LIMIT: Final = math.radians(30)
YAW_LIMIT: Final = math.radians(60)
CLOSE_BELOW: Final = 0.3  # an opening command under this closes on what is between the fingers
RELEASE_ABOVE: Final = 0.5  # an opening command above this lets go
GRASP_REACH: Final = 0.016  # horizontal, from the point between the fingertips to the block's centre
GRASP_RISE: Final = 0.018
GRASP_TILT: Final = math.radians(14)
GRASP_YAW: Final = math.radians(22)
PLACE_REACH: Final = 0.036

BodyKind = Literal["block", "plate"]
TaskKind = Literal["pick", "put"]
Verdict = Literal["running", "success", "wrong object"]


@dataclass(frozen=True, slots=True)
class Body:
    """A block or a plate, standing on the table or carried."""

    kind: BodyKind
    colour: str
    x: float
    y: float
    yaw: float = 0.0


@dataclass(frozen=True, slots=True)
class Gripper:
    """Position between the fingertips; roll leans the mast along x, pitch along y; opening in [0, 1]."""

    x: float
    y: float
    z: float
    roll: float
    pitch: float
    yaw: float
    opening: float


@dataclass(frozen=True, slots=True)
class State:
    """Everything there is. `held` is an index into `bodies`."""

    bodies: tuple[Body, ...]
    gripper: Gripper
    held: int | None = None

    def find(self, kind: BodyKind, colour: str) -> int:
        """The index of a body; colours are unique within a kind."""
        for index, body in enumerate(self.bodies):
            if body.kind == kind and body.colour == colour:
                return index
        raise LookupError(f"no {colour} {kind} on this table")


@dataclass(frozen=True, slots=True)
class Task:
    """Lift the block (no plate), or leave it on the plate."""

    block: str
    plate: str | None = None

    @property
    def kind(self) -> TaskKind:
        return "pick" if self.plate is None else "put"


def _place(rng: np.random.Generator, kinds: list[BodyKind]) -> list[tuple[float, float]]:
    """Uniform positions, drawn again until nothing touches."""
    while True:
        spots: list[tuple[float, float]] = []
        for kind in kinds:
            span = REACH if kind == "block" else REACH - 0.02
            for _ in range(40):
                x, y = (float(v) for v in rng.uniform(-span, span, 2))
                gaps = (
                    math.hypot(x - sx, y - sy) - 0.066 - 0.017 * ((kind == "plate") + (other == "plate"))
                    for (sx, sy), other in zip(spots, kinds, strict=False)
                )
                if all(gap > 0 for gap in gaps):
                    spots.append((x, y))
                    break
            else:
                break
        if len(spots) == len(kinds):
            return spots


def random_bodies(rng: np.random.Generator, blocks: tuple[int, int] = BLOCKS) -> tuple[Body, ...]:
    """`blocks` bounds the number of blocks; one or two plates; colours are unique within a kind."""
    plates = [str(c) for c in rng.permutation(PLATE_COLOURS)[: rng.integers(1, 3)]]
    cubes = [str(c) for c in rng.permutation(BLOCK_COLOURS)[: rng.integers(blocks[0], blocks[1] + 1)]]
    plate: BodyKind = "plate"
    block: BodyKind = "block"
    kinds = [plate] * len(plates) + [block] * len(cubes)
    return tuple(
        Body(kind, colour, x, y, float(rng.uniform(-0.55, 0.55)) if kind == "block" else 0.0)
        for kind, colour, (x, y) in zip(kinds, plates + cubes, _place(rng, kinds), strict=True)
    )


def random_gripper(rng: np.random.Generator) -> Gripper:
    """Uniform over the reachable box, with random roll, pitch and yaw, at least half open."""
    x, y = rng.uniform(-0.16, 0.16, 2)
    roll, pitch = rng.uniform(-0.4, 0.4, 2)
    return Gripper(
        x=float(x),
        y=float(y),
        z=float(rng.uniform(0.05, HEIGHTS[1])),
        roll=float(roll),
        pitch=float(pitch),
        yaw=float(rng.uniform(-0.55, 0.55)),
        opening=float(rng.uniform(0.5, 1.0)),
    )


def start(seed: int, kind: TaskKind) -> tuple[State, Task]:
    """The start of the episode of a seed; the table is the same for both kinds of task."""
    rng = np.random.default_rng(seed)
    state = State(random_bodies(rng), random_gripper(rng))
    block = str(rng.choice([b.colour for b in state.bodies if b.kind == "block"]))
    plate = str(rng.choice([b.colour for b in state.bodies if b.kind == "plate"]))
    return state, Task(block, None if kind == "pick" else plate)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _graspable(gripper: Gripper, body: Body) -> bool:
    return (
        body.kind == "block"
        and math.hypot(body.x - gripper.x, body.y - gripper.y) <= GRASP_REACH
        and gripper.z - GRASP_HEIGHT <= GRASP_RISE
        and max(abs(gripper.roll), abs(gripper.pitch)) <= GRASP_TILT
        and abs(body.yaw - gripper.yaw) <= GRASP_YAW
    )


def step(state: State, action: Action) -> State:
    """Move the gripper by the six deltas, then grasp, keep or release a block."""
    dx, dy, dz, droll, dpitch, dyaw, opening = (float(v) for v in action)
    old = state.gripper
    gripper = Gripper(
        x=_clip(old.x + dx, -0.18, 0.18),
        y=_clip(old.y + dy, -0.18, 0.18),
        z=_clip(old.z + dz, *HEIGHTS),
        roll=_clip(old.roll + droll, -TILT_LIMIT, TILT_LIMIT),
        pitch=_clip(old.pitch + dpitch, -TILT_LIMIT, TILT_LIMIT),
        yaw=_clip(old.yaw + dyaw, -YAW_LIMIT, YAW_LIMIT),
        opening=_clip(opening, 0.0, 1.0),
    )
    held = state.held
    if held is None and gripper.opening < CLOSE_BELOW:
        held = next((i for i, body in enumerate(state.bodies) if _graspable(gripper, body)), None)
    elif held is not None and gripper.opening > RELEASE_ABOVE:
        return State(_carry(state.bodies, held, gripper), gripper, None)
    if held is None:
        return State(state.bodies, gripper, None)
    return State(_carry(state.bodies, held, gripper), gripper, held)


def _carry(bodies: tuple[Body, ...], held: int, gripper: Gripper) -> tuple[Body, ...]:
    moved = replace(bodies[held], x=gripper.x, y=gripper.y, yaw=gripper.yaw)
    return (*bodies[:held], moved, *bodies[held + 1 :])


def verdict(state: State, task: Task) -> Verdict:
    """The outcome, from the state alone. Holding another block, or leaving the block on another plate, is final."""
    if state.held is not None and state.bodies[state.held].colour != task.block:
        return "wrong object"
    target = state.bodies[state.find("block", task.block)]
    if task.plate is None:
        return "success" if state.held is not None and state.gripper.z >= LIFTED_HEIGHT else "running"
    if state.held is not None:
        return "running"
    for body in state.bodies:
        if body.kind == "plate" and math.hypot(body.x - target.x, body.y - target.y) <= PLACE_REACH:
            return "success" if body.colour == task.plate else "wrong object"
    return "running"


def drive(state: State, task: Task, choose: Callable[[State], Action]) -> Iterator[tuple[Action, State]]:
    """One episode of at most `MAX_STEPS`: the action that `choose` takes in each state, and the state it leads to."""
    for _ in range(MAX_STEPS):
        action = choose(state)
        state = step(state, action)
        yield action, state
        if verdict(state, task) != "running":
            return
