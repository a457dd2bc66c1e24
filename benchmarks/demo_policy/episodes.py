"""Recorded episodes of the demo world, drawn again: `python -m benchmarks.demo_policy.episodes --set world1-policy …`.

A picture follows from the episode's seed, its world and the actions so far. So the repository holds an index (seeds,
instructions, exact actions, a hash of every picture), and the pictures are drawn again, each checked by its hash. Knows
how to read an index and replay an episode; knows nothing of networks. `record_sets` writes the indices.
"""

import argparse
import gzip
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image

from benchmarks import study
from edge_vla.data import Frame, read_frames, write_frames
from edge_vla.demo import statistics_key
from edge_vla.demo.record import episode_name, task_kind
from edge_vla.demo.render import render, world
from edge_vla.demo.world import RECORDED_SEEDS, Verdict, start, step, verdict
from edge_vla.errors import FrameError, ResourceError, UsageError
from edge_vla.files import write_whole

LOG: Final = logging.getLogger("benchmarks.demo_policy.episodes")
RECORDED: Final = study.ROOT / "calibration" / "recorded"
VERSION: Final = 1
RESTORE: Final = "restore it with `git checkout -- calibration/recorded`"
DIGITS: Final = 16  # hexadecimal digits of a picture's SHA-256
EPISODES: Final = 700  # of a set

Split = Literal["train", "calibration", "evaluation"]
SHARES: Final[Sequence[tuple[Split, int]]] = (("train", 60), ("calibration", 20), ("evaluation", 20))


@dataclass(frozen=True, slots=True)
class RecordedSet:
    """Who drove in which world, on which seeds. No two sets share a seed, so that none share a picture."""

    name: str
    world: int
    driver: Literal["expert", "policy"]  # in world 2 the policy is the base with the adapter merged
    seeds: range

    @property
    def path(self) -> Path:
        return RECORDED / f"{self.name}.jsonl.gz"

    def episode(self, seed: int) -> str:
        return episode_name(self.world, self.driver, seed)


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
    """One episode as it was recorded."""

    seed: int
    instruction: str
    outcome: Verdict  # "running": out of steps
    actions: tuple[tuple[float, ...], ...]  # (steps, 7), robot units, exact
    pictures: tuple[str, ...]  # (steps,): `fingerprint` of the picture before each action


def recorded_set(name: str) -> RecordedSet:
    if name not in SETS:
        raise UsageError(f"--set {name}: choose one of {', '.join(SETS)}")
    return SETS[name]


def split(episode: str) -> Split:
    """The split of an episode: a hash of its name decides."""
    draw = int.from_bytes(hashlib.sha256(episode.encode()).digest()[:4], "big") % 100
    for which, share in SHARES:
        if draw < share:
            return which
        draw -= share
    raise AssertionError("the shares of the splits add up to 100")


def fingerprint(image: Image.Image) -> str:
    """The first 64 bits of the SHA-256 of the RGB bytes."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()[:DIGITS]


def ending(seed: int, actions: Sequence[Sequence[float]]) -> Verdict:
    """The outcome of an episode driven by these actions."""
    state, task = start(seed, task_kind(seed))
    for action in actions:
        state = step(state, np.array(action))
    return verdict(state, task)


def read(name: str) -> list[Recorded]:
    """Every episode of a set, in the order of its seeds. FrameError for an index that is missing or damaged."""
    path = recorded_set(name).path
    try:
        header, *lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
        found = json.loads(header)
        if found != {"version": VERSION, "set": name}:
            raise FrameError(f"{path} begins with {found}, expected version {VERSION} of {name}: {RESTORE}")
        episodes = [_recorded(json.loads(line)) for line in lines]
    except FileNotFoundError as error:
        raise FrameError(f"{path} is missing, expected the recorded episodes there: {RESTORE}") from error
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError) as error:
        raise FrameError(f"{path} is damaged ({error}): {RESTORE}") from error
    if [episode.seed for episode in episodes] != list(recorded_set(name).seeds):
        raise FrameError(f"{path} holds {len(episodes)} episodes, expected one for each seed of {name}: {RESTORE}")
    return episodes


def _recorded(row: Mapping[str, object]) -> Recorded:
    values = {field.name: row[field.name] for field in fields(Recorded)}
    actions, pictures = row["actions"], row["pictures"]
    if not isinstance(actions, list) or not isinstance(pictures, list) or not len(actions) == len(pictures) > 0:
        raise ValueError("an episode with unequal numbers of actions and pictures")
    values |= {"actions": tuple(tuple(map(float, action)) for action in actions), "pictures": tuple(pictures)}
    return Recorded(**values)  # type: ignore[arg-type]  # replaying checks what it says


def write(path: Path, name: str, episodes: Sequence[Recorded]) -> None:
    """Write an index, whole or not at all; the same episodes always give the same bytes."""
    rows = [{"version": VERSION, "set": name}, *map(asdict, episodes)]
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    write_whole(path, gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def splits(name: str) -> dict[Split, list[Recorded]]:
    """The episodes of a set, by split."""
    chosen, found = recorded_set(name), read(name)
    return {which: [e for e in found if split(chosen.episode(e.seed)) == which] for which, _ in SHARES}


def hashes(name: str, which: Split) -> list[str]:
    """The hash of every picture of a split, without drawing any."""
    return [picture for episode in splits(name)[which] for picture in episode.pictures]


def replay(chosen: RecordedSet, episode: Recorded) -> Iterator[tuple[Frame, Image.Image]]:
    """The frames of one episode, drawn again. FrameError where a picture or the outcome is not as recorded."""
    look, named = world(chosen.world), chosen.episode(episode.seed)
    state, _ = start(episode.seed, task_kind(episode.seed))
    for count, (action, recorded) in enumerate(zip(episode.actions, episode.pictures, strict=True)):
        image = render(state, look)
        if (drawn := fingerprint(image)) != recorded:
            raise FrameError(
                f"{named}, step {count}: this machine draws picture {drawn}, expected {recorded}. Other versions of "
                "Pillow and numpy may draw differently: use those in constraints.txt"
            )
        file = Path(f"{named}-{count:02d}.png")
        yield Frame(file, episode.instruction, statistics_key(chosen.world), named, count, action), image
        state = step(state, np.array(action))
    if (outcome := ending(episode.seed, episode.actions)) != episode.outcome:
        raise FrameError(
            f"{named} ends as {outcome!r}, expected {episode.outcome!r}: its actions are damaged; {RESTORE}"
        )


def frames(name: str, which: Split, directory: Path, episodes: int | None = None) -> list[Frame]:
    """Draw a split into a new folder of frames, whole or not at all, and read it.

    Each frame has its instruction, statistics key, episode, step and recorded action. `episodes`: only so many.
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
    parser.add_argument("--episodes", type=int, help="only the first so many")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    given = parser.parse_args()
    found = frames(given.set, given.split, given.out, given.episodes)
    LOG.info("%s: %d frames, every picture as recorded", given.out, len(found))


if __name__ == "__main__":
    study.run(main)
