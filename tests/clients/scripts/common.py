"""What every client script shares. Runs in the client's environment: numpy and the standard library only.

    python SCRIPT.py SETTINGS.json        SETTINGS: addresses, the expected action, and where to record bytes

Prints one line `ok NAME` or `FAILED NAME: why` per check and exits 1 if one failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
INSTRUCTION = "pick up the red block"
ACTION = np.array(SETTINGS["action"])
KEY = SETTINGS["unnorm_key"]
FAILED: list[str] = []


def image() -> np.ndarray:
    """(20, 24, 3) uint8, the same everywhere."""
    rows, columns, colours = np.ogrid[:20, :24, :3]
    return ((rows * 11 + columns * 7 + colours * 53) % 256).astype(np.uint8)


def check(name: str, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:
        FAILED.append(name)
        print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
    else:
        print(f"ok {name}", flush=True)


def same(found: Any, dtype: str = "<f8") -> None:
    """An action as the policy gives it for `image()` and `INSTRUCTION`, bit for bit."""
    assert isinstance(found, np.ndarray), f"{type(found).__name__}: {found!r:.200}"
    assert found.dtype == np.dtype(dtype), found.dtype
    assert np.array_equal(found, ACTION.astype(dtype).reshape(found.shape)), found


def raises(run: Callable[[], Any], *words: str) -> None:
    try:
        found = run()
    except RuntimeError as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in {error}"
        assert "Traceback" not in str(error), error
    else:
        raise AssertionError(f"no error but {found!r:.200}")


def record(name: str, data: bytes) -> None:
    if SETTINGS.get("record"):
        folder = Path(SETTINGS["record"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def finish() -> None:
    sys.exit(1 if FAILED else 0)
