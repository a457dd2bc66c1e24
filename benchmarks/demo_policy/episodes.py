"""Recorded episodes of the demo world, regenerated: `python -m benchmarks.demo_policy.episodes --set world1-policy …`.

A picture follows from the episode's seed, its world and the actions so far. So what ships is an index (seeds,
words, exact actions, a hash of every picture) and the pictures are drawn again, each checked by its hash. Knows
how an index reads and how an episode is replayed; nothing of networks. `record_sets.py` makes the indices.
"""

import argparse
import gzip
import hashlib
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image

from edge_vla.data import Frame, read_frames, write_frames
from edge_vla.demo.record import episode_name, kind
from edge_vla.demo.render import render, world
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.demo.world import RECORDED_SEEDS, Verdict, start, step, verdict
from edge_vla.errors import EdgeVLAError, FrameError, ResourceError, UsageError
from edge_vla.files import write_whole

LOG: Final = logging.getLogger("benchmarks.demo_policy.episodes")
RECORDED: Final = Path(__file__).parents[2] / "calibration" / "recorded"
VERSION: Final = 1
DIGITS: Final = 16  # hexadecimal, of a picture's SHA-256
EPISODES: Final = 700  # a set

Split = Literal["train", "calibration", "evaluation"]
SHARES: Final[Sequence[tuple[Split, int]]] = (("train", 60), ("calibration", 20), ("evaluation", 20))


@dataclass(frozen=True, slots=True)
class RecordedSet:
    """Who drove in which world, on which seeds. No two sets share a seed, so none share a picture."""

    name: str
    world: int
    who: Literal["expert", "policy"]  # in world 2 the policy is the base with the adapter merged
    seeds: range

    @property
    def path(self) -> Path:
        return RECORDED / f"{self.name}.jsonl.gz"

    def episode(self, seed: int) -> str:
        return episode_name(self.world, self.who, seed)


SETS: Final[Mapping[str, RecordedSet]] = {
    chosen.name: chosen
    for chosen in (
        RecordedSet("world1-expert", 1, "expert", RECORDED_SEEDS[:EPISODES]),
        RecordedSet("world1-policy", 1, "policy", RECORDED_SEEDS[10_000 : 10_000 + EPISODES]),
        RecordedSet("world2-expert", 2, "expert", RECORDED_SEEDS[20_000 : 20_000 + EPISODES]),
        RecordedSet("world2-policy", 2, "policy", RECORDED_SEEDS[30_000 : 30_000 + EPISODES]),
    )
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One episode as it was driven."""

    seed: int
    instruction: str
    outcome: Verdict  # "running" is out of steps
    actions: tuple[tuple[float, ...], ...]  # (steps, 7), robot units, exact
    pictures: tuple[str, ...]  # (steps,): what was seen before each action, as `fingerprint` hashes it


def recorded_set(name: str) -> RecordedSet:
    if name not in SETS:
        raise UsageError(f"--set {name}: choose one of {', '.join(SETS)}")
    return SETS[name]


def split(episode: str) -> Split:
    """By a hash of the episode's name alone."""
    luck = int.from_bytes(hashlib.sha256(episode.encode()).digest()[:4], "big") % 100
    for which, share in SHARES:
        if luck < share:
            return which
        luck -= share
    raise AssertionError("the shares of the splits add up to 100")


def fingerprint(image: Image.Image) -> str:
    """The first 64 bits of the SHA-256 of the RGB bytes."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()[:DIGITS]


def ending(seed: int, actions: Sequence[Sequence[float]]) -> Verdict:
    """How an episode ends that is driven by these actions."""
    state, task = start(seed, kind(seed))
    for action in actions:
        state = step(state, np.array(action))
    return verdict(state, task)


def read(name: str) -> list[Recorded]:
    """Every episode of a set, in the order of its seeds. Raises FrameError for an index that is not whole."""
    path = recorded_set(name).path
    try:
        header, *lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
        found = json.loads(header)
        if found != {"version": VERSION, "set": name}:
            raise FrameError(f"{path} begins with {found}, expected version {VERSION} of {name}: install it again")
        episodes = [_recorded(json.loads(line)) for line in lines]
    except FileNotFoundError as error:
        raise FrameError(
            f"{path} is missing: expected the recorded episodes there; install the package again"
        ) from error
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise FrameError(f"{path} is damaged ({error}): install the package again") from error
    if [episode.seed for episode in episodes] != list(recorded_set(name).seeds):
        raise FrameError(f"{path} holds {len(episodes)} episodes, not those of {name}'s seeds: install it again")
    return episodes


def _recorded(row: Mapping[str, object]) -> Recorded:
    values = {field.name: row[field.name] for field in fields(Recorded)}
    actions, pictures = row["actions"], row["pictures"]
    if not isinstance(actions, list) or not isinstance(pictures, list) or not len(actions) == len(pictures) > 0:
        raise ValueError("an episode needs as many actions as pictures")
    values |= {"actions": tuple(tuple(map(float, action)) for action in actions), "pictures": tuple(pictures)}
    return Recorded(**values)  # type: ignore[arg-type]  # the index is ours; replaying checks what it says


def write(path: Path, name: str, episodes: Sequence[Recorded]) -> None:
    """An index, whole or not at all; the same episodes always give the same bytes before compression."""
    rows = [{"version": VERSION, "set": name}, *map(asdict, episodes)]
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    write_whole(path, gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def splits(name: str) -> dict[Split, list[Recorded]]:
    """The episodes of a set, by split."""
    chosen, found = recorded_set(name), read(name)
    return {which: [e for e in found if split(chosen.episode(e.seed)) == which] for which, _ in SHARES}


def hashes(name: str, which: Split) -> list[str]:
    """The hash of every picture of a split, without drawing any: for tests that two sets have none in common."""
    return [picture for episode in splits(name)[which] for picture in episode.pictures]


def replay(chosen: RecordedSet, episode: Recorded) -> Iterator[tuple[Frame, Image.Image]]:
    """The frames of one episode, drawn again. Raises FrameError where a picture is not the recorded one."""
    look, named = world(chosen.world), chosen.episode(episode.seed)
    state, _ = start(episode.seed, kind(episode.seed))
    for count, (action, recorded) in enumerate(zip(episode.actions, episode.pictures, strict=True)):
        image = render(state, look)
        if (drawn := fingerprint(image)) != recorded:
            raise FrameError(
                f"{named}, step {count}: this machine draws picture {drawn}, recorded was {recorded}. Another version "
                "of Pillow or numpy may draw differently: use the versions in constraints.txt"
            )
        file = Path(f"{named}-{count:02d}.png")
        yield Frame(file, episode.instruction, statistics_name(chosen.world), named, count, action), image
        state = step(state, np.array(action))
    if (outcome := ending(episode.seed, episode.actions)) != episode.outcome:
        raise FrameError(f"{named} ends as {outcome!r}, recorded was {episode.outcome!r}: its actions are damaged")


def frames(name: str, which: Split, directory: Path, episodes: int | None = None) -> list[Frame]:
    """Draw a split into a new folder in the house's frames format, whole or not at all, and read it.

    Each frame has its instruction, statistics key, episode, step and recorded action. `episodes` takes only so many.
    """
    chosen = recorded_set(name)
    if which not in get_args(Split):
        raise UsageError(f"--split {which}: choose one of {', '.join(get_args(Split))}")
    if directory.exists():
        raise UsageError(f"{directory} exists already: remove it or choose another folder")
    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write_frames(beside, (pair for episode in splits(name)[which][:episodes] for pair in replay(chosen, episode)))
        beside.replace(directory)
    except OSError as error:
        raise ResourceError(f"cannot write {directory}: {error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return read_frames(directory)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.episodes", description=__doc__)
    parser.add_argument("--set", required=True, choices=list(SETS))
    parser.add_argument("--split", required=True, choices=get_args(Split))
    parser.add_argument("--episodes", type=int, help="only so many, from the first")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = frames(arguments.set, arguments.split, arguments.out, arguments.episodes)
    LOG.info("%s: %d frames, every picture as it was recorded", arguments.out, len(found))


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
