"""What one message, one connection and one server may cost, and what an observation must look like. Caps come first.

Knows numbers, images and instructions; neither a wire format nor a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge_vla.serve.messages import Code, Observation, RefusedError

MIN_SIDE: Final = 16  # pixels
CHANNELS: Final = 3
UNBOUNDED_MS: Final = 3_600_000.0  # no deadline and no age that means anything is longer


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes unless named otherwise; times in seconds. Front ends check them before they decode."""

    body: int = 16 * 2**20
    headers: int = 16 * 2**10
    image_pixels: int = 8_300_000
    image_side: int = 2**12
    images: int = 4
    instruction: int = 512  # of UTF-8
    instruction_tokens: int = 64
    robot: int = 128  # characters of a robot's or an observation's name
    depth: int = 16
    keys: int = 64
    read_s: float = 5.0  # for a request's header, and again for its body; for a WebSocket's first message
    connections: int = 1000
    robots: int = 256  # whose drafts and mailboxes are kept at a time
    ping_s: float = 20.0
    pong_s: float = 60.0


def check_sides(shape: Sequence[int], limits: Limits) -> None:
    """E_IMAGE_SHAPE or E_TOO_LARGE unless `shape` is height, width, 3 within the caps. Costs no memory."""
    if len(shape) == CHANNELS and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise RefusedError(Code.IMAGE_SHAPE, f"got CHW ({_shown(shape)}), expected HWC: transpose the image (1, 2, 0)")
    if len(shape) != CHANNELS or shape[2] != CHANNELS:
        raise RefusedError(Code.IMAGE_SHAPE, f"an image must be height x width x 3, got {_shown(shape) or 'a scalar'}")
    height, width = shape[0], shape[1]
    if min(height, width) < MIN_SIDE:
        raise RefusedError(Code.IMAGE_SHAPE, f"an image must be at least {MIN_SIDE} pixels a side, got {_shown(shape)}")
    if max(height, width) > limits.image_side or height * width > limits.image_pixels:
        most = f"{limits.image_side} pixels a side and {limits.image_pixels} pixels"
        raise RefusedError(Code.TOO_LARGE, f"an image may have {most}, got {_shown(shape)}: resize it before sending")


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def check_observation(observation: Observation, limits: Limits, keys: Mapping[str, str]) -> None:
    """RefusedError for an image, an instruction, a name or a time that no policy should see.

    `keys` are the data sets that are known, each with what is wrong with it ("" for a sound one).
    """
    image = observation.image
    if image.dtype.str != "|u1":
        raise RefusedError(Code.IMAGE_SHAPE, f"an image must be uint8 in 0..255, got {image.dtype}")
    check_sides(image.shape, limits)
    check_instruction(observation.instruction, limits)
    _check_names(observation, limits)
    _check_times(observation)
    key = observation.unnorm_key
    if key is not None and keys.get(key) != "":
        known = ", ".join(sorted(name for name, wrong in keys.items() if not wrong))
        got = f"{key[:80]!r}" if key not in keys else f"{key!r}, whose statistics are not sound"
        raise RefusedError(Code.UNNORM_KEY, f"unnorm_key is {got}: choose one of {known}")


def check_instruction(instruction: str, limits: Limits) -> None:
    """E_INSTRUCTION for an empty one, one that is too long, or one that is not text."""
    if not instruction.strip():
        raise RefusedError(Code.INSTRUCTION, "the instruction is empty: say what the robot should do")
    try:
        size = len(instruction.encode())
    except UnicodeEncodeError:
        raise RefusedError(Code.INSTRUCTION, "the instruction is not valid Unicode text: send UTF-8") from None
    if size > limits.instruction:
        raise RefusedError(
            Code.INSTRUCTION, f"an instruction may have {limits.instruction} bytes of UTF-8, got {size}: shorten it"
        )


def _check_names(observation: Observation, limits: Limits) -> None:
    name = observation.observation_id
    if not observation.robot or len(observation.robot) > limits.robot:
        raise RefusedError(
            Code.MALFORMED, f"a robot's name has 1 to {limits.robot} characters, got {len(observation.robot)}"
        )
    if isinstance(name, str) and len(name) > limits.robot:
        raise RefusedError(
            Code.MALFORMED, f"an observation id may have {limits.robot} characters, got {len(name)}: use a number"
        )


def _check_times(observation: Observation) -> None:
    deadline, age = observation.deadline_ms, observation.age_ms
    if deadline is not None and not 0 < deadline <= UNBOUNDED_MS:  # NaN too
        raise RefusedError(Code.MALFORMED, f"deadline_ms must be above 0 and at most an hour, got {deadline}")
    if age is not None and not 0 <= age <= UNBOUNDED_MS:
        raise RefusedError(Code.MALFORMED, f"age_ms must be 0 to an hour, got {age}")
