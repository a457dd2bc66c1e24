"""Did you mean: what exists and is spelt nearly like what was asked for. Knows words and paths, nothing of policies."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

CLOSE: Final = 0.72  # of difflib's ratio: two letters changed or swapped in a word of ten
SURE: Final = 0.85  # where a near name alone decides: one letter or two


def nearest(word: object, choices: Iterable[str], cutoff: float = CLOSE) -> str | None:
    """The choice that is spelt most like the word, whatever the case; None if none is near."""
    by_folded = {choice.casefold(): choice for choice in choices}
    found = get_close_matches(str(word).casefold(), by_folded, 1, cutoff)
    return by_folded[found[0]] if found else None


def choose(word: object, choices: Iterable[str]) -> str:
    """`choose one of a, b, c`, and which of them was meant, if one is spelt nearly so."""
    known = [*choices]
    longer = [choice for choice in known if set(str(word).casefold().split("-")) < set(choice.casefold().split("-"))]
    near = longer[0] if len(longer) == 1 else nearest(word, known)  # orin-16 is orin-nx-16 before orin-64
    return f"choose one of {', '.join(known)}" + ("" if near is None else f"; did you mean {near!r}?")


def near_path(path: Path, cutoff: float = CLOSE) -> Path | None:
    """An existing path, spelt nearly alike in every part; None if there is none."""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not (found / part).exists():
            try:
                siblings = [entry.name for entry in found.iterdir()]
            except OSError:
                return None
            near = nearest(part, siblings, cutoff)
            if near is None:
                return None
            part = near
        found /= part
    return found


def no_such(path: Path, what: str = "directory") -> str:
    """`PATH: no such directory; did you mean OTHER?`"""
    near = near_path(path)
    return f"{path}: no such {what}" + ("" if near is None else f"; did you mean {near}?")
