"""Ways to spoil a directory, and what every refusal must look like.

A checkpoint is copied as hard links, so that its size costs nothing; therefore files are only ever replaced here, never
written into.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_vla.cli import main
from edge_vla.errors import EdgeVLAError

Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Fault:
    """`damage` spoils a directory; opening it must raise just `error`, with all of `words` in its one line."""

    name: str
    damage: Damage
    error: type[EdgeVLAError]
    words: tuple[str, ...]


def names(faults: Sequence[Fault]) -> list[str]:
    found = [fault.name for fault in faults]
    assert len(set(found)) == len(found), "each fault has a name of its own"
    return found


def link(source: Path, target: Path) -> Path:
    """A copy of a directory that shares its files' contents."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def put(path: Path, content: bytes | str) -> None:
    """Replace a file; its other links keep the old content."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    put(path, bytes(data))


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes; a negative size counts from the end."""
    data = path.read_bytes()
    put(path, data[:size])
    assert path.stat().st_size < len(data), "something was cut"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    before = json.dumps(raw)
    change(raw)
    assert json.dumps(raw) != before, "something was changed"
    put(path, json.dumps(raw))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def spoil(tensors: dict[str, Tensor], name: str, value: float) -> None:
    """Put one number into the middle of a tensor."""
    flat = tensors[name].flatten()
    flat[len(flat) // 2] = value
    tensors[name] = flat.view(tensors[name].shape)


def refused(caught: pytest.ExceptionInfo[EdgeVLAError], kind: type[EdgeVLAError], words: Sequence[str]) -> None:
    """The error is of just this kind, and its message is one line that holds all of `words`."""
    assert caught.type is kind
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word.lower() not in message.lower()] == [], message


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: object
    stdout: str
    stderr: str

    def refused_with(self, code: int, words: Sequence[str] = (), *, lines: int | None = 1) -> None:
        """Exit code, nothing on standard output, and a single error line at the end; `lines` on standard error."""
        assert self.code == code, self.stderr
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        told = self.stderr.splitlines()
        assert lines is None or len(told) == lines, self.stderr
        assert told[-1].startswith("error: ")
        assert sum(line.startswith("error: ") for line in told) == 1
        assert [word for word in words if word.lower() not in told[-1].lower()] == [], told[-1]


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Run `edge-vla ARGUMENTS` in this process, with the warnings that a process of its own would show."""
    capsys.readouterr()
    with warnings.catch_warnings():
        _default_warnings()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Ended(ended.value.code or 0, captured.out, captured.err)


def _default_warnings() -> None:
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)


@contextmanager
def nothing_left(out: Path) -> Iterator[None]:
    """Whatever happens inside, neither `out` nor its partial directory may stand afterwards."""
    before = set(out.parent.iterdir())
    yield
    assert set(out.parent.iterdir()) == before, "nothing was left behind"


def write_adapter(
    directory: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, alpha: float = 8
) -> Path:
    directory.mkdir()
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, directory / WEIGHTS)
    targets = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "target_modules": targets, **(config or {})}
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def lora(module: str, outer: int, inner: int, rank: int = 4) -> dict[str, Tensor]:
    """Seeded factors of one module."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, inner, generator=generator),
        f"{module}.lora_B.weight": torch.randn(outer, rank, generator=generator),
    }


WEIGHTS = "adapter_model.safetensors"
