"""Does anything that a stranger sends get past the codecs? `python -m benchmarks.serve.fuzz --out FILE`. Five minutes.

Each wire form gets messages made of two kinds: those its unmodified client sent, with bytes flipped, cut, repeated and
spliced, and new ones built around its array markers from values at the edges. A message whose refusal reads like none
before joins the seeds. Every message must come back as a value or as RefusedError; anything else is a crash. Each form
runs in a process of its own whose address space is capped a little above what it has at the start.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import msgpack
import numpy as np
from PIL import Image

from benchmarks import study
from benchmarks.serve.wire import observation
from edge_vla.serve.codec import gr00t, json_numpy, npy, openpi, vla_eval
from edge_vla.serve.codec.image import compressed, rgb
from edge_vla.serve.codec.packed import text_keys, unpack
from edge_vla.serve.codec.values import Value
from edge_vla.serve.fields import fields
from edge_vla.serve.gr00t_fields import read
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import RefusedError
from edge_vla.serve.native import pixels

LIMITS: Final = Limits()
GOLDEN: Final = study.ROOT / "tests" / "serve" / "golden"
HEADROOM: Final = 256 << 20  # bytes of address space above the start's
SEEDS_KEPT: Final = 512
WORST_SHOWN: Final = 5
DTYPES: Final = ("|u1", "<f4", ">f8", "|b1", "|O", "<c8", "<U3", "|V4", "uint8", "", "<i8", "f4,f4", "<M8[s]", "<f16")
LENGTHS: Final = (0, 1, 2, 3, 7, 16, 20, 224, 4097, 65536, 1 << 24, 1 << 31, (1 << 63) - 1, -1)
EDGES: Final[tuple[object, ...]] = (
    None, True, False, 0, -1, 1 << 63, -(1 << 63), 0.5, float("nan"), float("inf"), "", "x", "pick up", "\x00",
    b"", b"\x00" * 12, b"\xff" * 400, [], {}, [[]], [1, 2, 3], "é" * 300,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FormFuzz:
    """One wire form. `crashes` lists what was neither a value nor a refusal, `peak_mib` is the process's own peak."""

    messages: int
    accepted: int
    refused: dict[str, int]
    distinct_refusals: int
    crashes: list[str]
    seconds: float
    slowest_ms: float
    start_mib: float
    peak_mib: float
    address_space_headroom_mib: float


@dataclass(frozen=True, kw_only=True)
class FuzzResult:
    KIND: ClassVar[str] = "serve-fuzz"
    VERSION: ClassVar[int] = 1

    seed: int
    forms: dict[str, FormFuzz]


def _read_json(body: bytes) -> Value:
    return _images(json_numpy.decode_request(body, LIMITS).payload)


def _read_openpi(body: bytes) -> Value:
    return _images(openpi.decode(body, LIMITS))


def _read_vla_eval(body: bytes) -> Value:
    return _images(vla_eval.decode(body, LIMITS))


def _read_gr00t(body: bytes) -> Value:
    found = gr00t.decode(body, LIMITS)
    read(fields(fields(found).get("data")), LIMITS)
    return found


def _read_native(body: bytes) -> Value:
    found = fields(unpack(body, LIMITS, text_keys))
    if found.get("format", "raw") == "raw":
        pixels(found.get("image"), found.get("shape"), LIMITS)
    else:
        compressed(found.get("image"), found["format"], LIMITS)
    return found


def _read_npy(body: bytes) -> Value:
    return npy.decode(body, LIMITS)


FORMS: Final[dict[str, Callable[[bytes], Value]]] = {
    "json-numpy": _read_json,
    "openpi": _read_openpi,
    "vla-eval": _read_vla_eval,
    "gr00t": _read_gr00t,
    "npy": _read_npy,
    "native": _read_native,
}


def _images(value: Value) -> Value:
    """Every array of a message, asked for as an image too."""
    level = [value]
    while level:
        item = level.pop()
        if isinstance(item, dict):
            level += item.values()
        elif isinstance(item, list):
            level += item
        elif isinstance(item, np.ndarray):
            for order in ("HWC", "CHW"):
                try:
                    rgb(item, "image", LIMITS, "HWC" if order == "HWC" else "CHW")
                except RefusedError:
                    continue
    return value


def seeds(form: str) -> list[bytes]:
    """What the form's unmodified client sent."""
    if form == "native":
        picture = np.zeros((20, 24, 3), np.uint8)
        return [observation(picture, "pick up the red block", 1), *(_compressed(kind) for kind in ("PNG", "JPEG"))]
    prefix = {"json-numpy": "rest"}.get(form, form)
    found = [path.read_bytes() for path in sorted(GOLDEN.glob(f"{prefix}*"))]
    if form == "npy":  # as numpy writes them, whole
        return [
            npy.encode(np.zeros(shape, dtype)) for shape in ((), (7,), (1, 1, 20, 24, 3)) for dtype in ("|u1", "<f4")
        ]
    return found


def _compressed(kind: str) -> bytes:
    """Our own protocol's observation with a picture's file."""
    written = io.BytesIO()
    Image.new("RGB", (24, 20)).save(written, format=kind)
    sent = {"type": "observation", "instruction": "x", "image": written.getvalue(), "format": kind.lower()}
    packed: bytes = msgpack.packb(sent)
    return packed


def mutated(body: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a length at an edge, a cut, a repeated or a foreign piece."""
    data = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        length = min(len(data) - at, 1 << chance.randint(0, 8))
        kind = chance.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = chance.choice((0, 0x7F, 0x80, 0xC1, 0xC4, 0xD9, 0xDD, 0xDF, 0xFF))
        elif kind == 2:
            data[at:at] = chance.choice(LENGTHS).to_bytes(8, "big", signed=True)[-chance.choice((1, 2, 4, 8)) :]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * chance.randint(1, 4)
        elif kind == 5:
            other = chance.choice(others)
            data[at:at] = other[(begin := chance.randrange(len(other) + 1)) : begin + length]
        elif kind == 6:
            data = data[:at]
        else:
            data[at : at + length] = chance.randbytes(length)
    return bytes(data)


def built(form: str, chance: random.Random) -> bytes:
    """A message of the form with arrays and fields of wrong and edge values."""
    value = _value(form, chance, 0)
    if form == "npy":
        return value if isinstance(value, bytes) else _npy_file(chance)
    if form == "json-numpy":
        text = json.dumps(value, default=lambda item: item.decode("latin-1"))
        return json.dumps({"encoded": text} if chance.random() < 0.2 else value, default=str).encode()
    if form == "gr00t" and chance.random() < 0.7:
        value = {"endpoint": chance.choice(("get_action", "ping", "", 3)), "data": value}
    packed: bytes = msgpack.packb(value, default=str)
    return packed


def _value(form: str, chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if kind < 0.35 or depth > chance.choice((2, 3, 6, 20)):
        edge = chance.choice(EDGES)
        return edge if not isinstance(edge, int) or -(1 << 63) <= edge < 1 << 64 else 0
    if kind < 0.6:
        return _array(form, chance)
    if kind < 0.7:
        return [_value(form, chance, depth + 1) for _ in range(chance.choice((0, 1, 2, 5, 40)))]
    names = (
        "image",
        "shape",
        "format",
        "images",
        "instruction",
        "observation",
        "video",
        "language",
        "video.x",
        "annotation.y",
        "state",
    )
    picked = chance.sample(names, chance.randint(1, 5))
    return {name: _value(form, chance, depth + 1) for name in picked}


def _array(form: str, chance: random.Random) -> Any:
    dtype = chance.choice(DTYPES) if chance.random() < 0.8 else chance.choice(EDGES)
    shape: Any = [chance.choice(LENGTHS) for _ in range(chance.choice((0, 1, 3, 3, 3, 5, 8)))]
    shape = chance.choice(EDGES) if chance.random() < 0.1 else shape
    data: Any = bytes(chance.choice((0, 1, 4, 12, 1680, 1440)))
    if chance.random() < 0.3:
        shape, data, dtype = [20, 24, 3], bytes(1440), "|u1"
    if form == "gr00t":
        return {"__ndarray_class__": True, "as_npy": _npy_file(chance)}
    if form == "json-numpy":
        return {"__numpy__": chance.choice(("", "AAAA", "AA==", "A" * 1920)), "dtype": dtype, "shape": shape}
    if form == "vla-eval" and chance.random() < 0.5:
        picture = chance.choice(("png", "jpeg", "raw", "gif"))
        return {
            "__image__": True,
            "format": picture,
            "data": data,
            "shape": shape,
            **({"dtype": dtype} if picture == "raw" else {}),
        }
    marker, key = (b"__ndarray__", bytes) if form == "openpi" else ("__ndarray__", str)
    names = ("data", "dtype", "shape")
    made = {
        (name.encode() if key is bytes else name): item for name, item in zip(names, (data, dtype, shape), strict=True)
    }
    return {marker: True, **made}


def _npy_file(chance: random.Random) -> bytes:
    shape = tuple(chance.choice(LENGTHS) for _ in range(chance.choice((0, 1, 3, 5, 5, 8))))
    shape = (1, 1, 20, 24, 3) if chance.random() < 0.3 else shape
    dtype, fortran = chance.choice(DTYPES), chance.choice((True, False, 0))
    header = f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
    version = chance.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x00\x00"))
    length = chance.choice((len(header), len(header), 0, 65535)).to_bytes(4 if version[0] == 2 else 2, "little")
    return b"\x93NUMPY" + version + length + header.encode() + bytes(chance.choice((0, 1, 1440)))


def messages(form: str, count: int, chance: random.Random, found: list[bytes]) -> Iterable[bytes]:
    """`found` is the seeds, and grows while this runs."""
    for _ in range(count):
        yield mutated(chance.choice(found), found, chance) if chance.random() < 0.7 else built(form, chance)


def fuzz(form: str, count: int, seed: int) -> FormFuzz:
    """In this process."""
    chance, run, pool = random.Random(f"{form} {seed}"), FORMS[form], seeds(form)
    refused: dict[str, int] = {}
    known: set[str] = set()
    crashes: list[str] = []
    accepted, slowest, start = 0, 0.0, _peak_mib()
    began = time.perf_counter()
    for body in messages(form, count, chance, pool):
        before = time.perf_counter()
        try:
            run(body)
            accepted += 1
        except RefusedError as error:
            refused[error.code.value] = refused.get(error.code.value, 0) + 1
            shape = re.sub(r"\d+", "#", error.detail)
            if shape not in known and len(pool) < SEEDS_KEPT:
                known.add(shape)
                pool.append(body)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            crashes.append(f"{type(error).__name__}: {error!s:.200} on {body[:200].hex()}")
        slowest = max(slowest, time.perf_counter() - before)
    return FormFuzz(
        messages=count,
        accepted=accepted,
        refused=dict(sorted(refused.items())),
        distinct_refusals=len(known),
        crashes=crashes[:WORST_SHOWN],
        seconds=round(time.perf_counter() - began, 3),
        slowest_ms=round(1e3 * slowest, 3),
        start_mib=start,
        peak_mib=_peak_mib(),
        address_space_headroom_mib=HEADROOM / 2**20,
    )


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _cap_memory() -> None:
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))


def measure(count: int, seed: int) -> FuzzResult:
    forms = {}
    for form in FORMS:
        command = [sys.executable, "-m", "benchmarks.serve.fuzz", "--form", form, "--count", str(count)]
        done = subprocess.run(
            [*command, "--seed", str(seed)], capture_output=True, text=True, env=study.child_environment(), check=False
        )
        if done.returncode:
            raise SystemExit(f"the process of {form} ended with {done.returncode}: {done.stderr[-800:]}")
        forms[form] = FormFuzz(**json.loads(done.stdout))
    return FuzzResult(seed=seed, forms=forms)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.fuzz", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=120_000, help="messages per form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.form is not None:
        _cap_memory()
        sys.stdout.write(json.dumps(fuzz(given.form, given.count, given.seed).__dict__))
        return None
    if given.out is None:
        parser.error("--out FILE is needed")
    return study.write_result(given.out, measure(given.count, given.seed))


if __name__ == "__main__":
    study.run(main)
