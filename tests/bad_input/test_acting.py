"""What a robot's program can get wrong in one call, and what the network can: no action is made from it."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edge_vla.artifact import Artifact
from edge_vla.data import open_image, read_frames
from edge_vla.errors import EdgeVLAError, EdgeVLAWarning, FrameError, NumericError, UsageError
from edge_vla.runtime import Policy, load
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.padding import PAD_TO
from tests.bad_input.damage import command, put, refused

WORDS = "open the drawer"
PICTURE = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "ico", "jpeg2000")


@pytest.fixture(scope="module")
def policy(tiny_artifacts: Mapping[int, Path]) -> Policy:
    return load(tiny_artifacts[4], check=False)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def encoded(mode: str = "RGB", size: tuple[int, int] = (24, 20), kind: str = "png") -> bytes:
    memory = io.BytesIO()
    if mode == "RGB":
        noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(memory, kind)
    else:
        Image.new(mode, size).save(memory, kind)
    return memory.getvalue()


FILES: Mapping[str, tuple[bytes | None, str]] = {
    "missing": (None, "no such file"),
    "empty": (b"", "not an image"),
    "text": (b"hello", "not an image"),
    "cut": (encoded()[:300], "not an image"),
    "weights": ((8).to_bytes(8, "little") + b"{}      ", "not an image"),
    "sixteen bits": (encoded("I;16"), "8 bits a channel"),
    "floats": (encoded("F", kind="tiff"), "8 bits a channel"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_image(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, word = FILES[name]
    path = tmp_path / "camera.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EdgeVLAError) as caught:
        open_image(path)
    refused(caught, FrameError, (str(path), word))
    ended = command(capsys, "run", "random:openvla-tiny", "--image", path, "--instruction", WORDS)
    ended.refused_with(FrameError.exit_code, (str(path), word))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="not an image"):
        open_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_refused_or_read(kind: str, tmp_path: Path) -> None:
    """Pillow's readers raise a dozen types; ours is one. A flip in the pixels may still be an image."""
    sound, path, dice, refusals = encoded(kind=kind), tmp_path / "image", random.Random(0), 0
    path.write_bytes(sound)
    assert open_image(path).mode == "RGB"
    for trial in range(120):
        damaged = bytearray(sound)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(min(len(sound), 200))] ^= 1 << dice.randrange(8)
        put(path, bytes(damaged[: dice.randrange(len(sound))] if trial % 3 == 0 else damaged))
        try:
            open_image(path)
        except FrameError:
            refusals += 1
    assert refusals > 10


ARRAYS: Mapping[str, tuple[Any, str]] = {
    "float": (PICTURE / 255.0, "uint8 in 0..255, got float64 in 0..1: multiply by 255"),
    "int64": (PICTURE.astype(np.int64), "got int64"),
    "bool": (PICTURE > 9, "got bool"),
    "channels first": (PICTURE.transpose(2, 0, 1), "(3, 28, 28): transpose"),
    "batch": (PICTURE[None], "(1, 28, 28, 3)"),
    "two channels": (PICTURE[:, :, :2], "(28, 28, 2)"),
    "row": (PICTURE[0, 0], "(3,)"),
    "no rows": (PICTURE[:0], "(0, 28, 3)"),
    "no columns": (PICTURE[:, :0], "(28, 0, 3)"),
    "list": (PICTURE.tolist(), "got list"),
    "path": ("camera.png", "got str"),
    "none": (None, "got NoneType"),
    "tensor": (torch.from_numpy(PICTURE), "got Tensor"),
    "empty picture": (Image.new("RGB", (0, 5)), "some pixels"),
    "wide picture": (Image.new("I", (28, 28)), "8 bits a channel"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_no_image(name: str, policy: Policy) -> None:
    image, word = ARRAYS[name]
    with pytest.raises(EdgeVLAError) as caught:
        policy.act(image, WORDS)
    refused(caught, FrameError, ("an image", word))


LINES: Mapping[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"\n", ("no frames",)),
    "not UTF-8": (b"\xff", ("not UTF-8",)),
    "not JSON": (b'{"image"', ("line 1", "expected")),
    "a list": (b"[1]", ("line 1", "expected")),
    "no image": (b'{"instruction": "go"}', ("line 1", "image")),
    "no instruction": (b'\n{"image": "a.png"}', ("line 2", "instruction")),
    "action a text": (b'{"image": "a.png", "instruction": "go", "action": "up"}', ("line 1", "expected")),
    "key a number": (b'{"image": "a.png", "instruction": "go", "unnorm_key": 1}', ("line 1", "unnorm_key")),
    "episode a list": (b'{"image": "a.png", "instruction": "go", "episode": [1]}', ("line 1", "episode")),
    "step a text": (b'{"image": "a.png", "instruction": "go", "step": "1"}', ("line 1", "step")),
    "the same question twice": (
        b'{"image": "a.png", "instruction": "go"}\n\n{"image": "a.png", "instruction": "go"}',
        ("line 3", "image and instruction", "line 1"),
    ),
    "the same step twice": (
        b'{"image": "a.png", "instruction": "go", "episode": 1, "step": 0}\n'
        b'{"image": "b.png", "instruction": "go", "episode": "1", "step": 0}',
        ("line 2", "episode and step", "line 1"),
    ),
    "outside": (b'{"image": "../a.png", "instruction": "go"}', ("line 1", "file in the folder or below it")),
    "outside by a detour": (b'{"image": "a/../../b.png", "instruction": "go"}', ("line 1", "in the folder")),
    "absolute": (b'{"image": "/etc/a.png", "instruction": "go"}', ("line 1", "in the folder")),
    "no name": (b'{"image": ".", "instruction": "go"}', ("line 1", "in the folder")),
    "the same question twice below": (
        b'{"image": "a/0.png", "instruction": "go"}\n{"image": "./a//0.png", "instruction": "go"}',
        ("line 2", "image and instruction", "'a/0.png'"),
    ),
    "nested": (b"[" * 200_000, ("line 1", "expected")),
}


@pytest.mark.parametrize("name", LINES)
def test_malformed_frames(name: str, tmp_path: Path) -> None:
    content, words = LINES[name]
    (tmp_path / "frames.jsonl").write_bytes(content)
    with pytest.raises(EdgeVLAError) as caught:
        read_frames(tmp_path)
    refused(caught, FrameError, ("frames.jsonl", *words))


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    picture, index = tmp_path / "a.png", tmp_path / "frames.jsonl"
    picture.symlink_to(picture)
    with pytest.raises(FrameError, match=r"a\.png cannot be read: Too many levels"):
        open_image(picture)
    index.symlink_to(index)
    with pytest.raises(FrameError, match=r"frames\.jsonl cannot be read \(Too many levels"):
        read_frames(tmp_path)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(FrameError, match="cannot be read"):
        read_frames(tmp_path / "round")


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels(width: int, height: int, tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(FrameError, match=r"a\.png is not an image"):
        open_image(tmp_path / "a.png")


def test_frames_that_are_no_folder(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"frames\.jsonl is missing: expected"):
        read_frames(tmp_path)
    with pytest.raises(FrameError, match=r"cannot be read .*expected a folder"):
        read_frames(picture)


def test_an_empty_instruction_is_answered_with_a_warning(
    policy: Policy, tiny_artifacts: Mapping[int, Path], picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("", " "):
        with pytest.warns(EdgeVLAWarning, match="the instruction is empty"):
            action = policy.act(PICTURE, text)
        assert np.isfinite(action.values).all()
        assert len(action.tokens) == 7
    arguments = ("run", tiny_artifacts[4], "--image", picture, "--instruction", "", "--json")
    ended = command(capsys, *arguments)
    assert ended.code == 0
    assert len(json.loads(ended.stdout)["tokens"]) == 7
    assert ended.stderr == "warning: the instruction is empty: the policy will act on the image alone\n"


CALLS: Mapping[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "too long": (("--instruction", "go " * 3000), 2, ("the prompt has", "rows with the image", "at most 2048")),
    "not Unicode": (("--instruction", "go \udcff"), 2, ("not valid Unicode", "UTF-8")),
    "unknown key": (
        ("--instruction", WORDS, "--unnorm-key", "mars"),
        2,
        ("unknown unnorm_key 'mars'", "choose one of random"),
    ),
    "full head": (("--instruction", WORDS, "--head", "full"), 2, ("is an artifact", "no full head")),
    "other head": (("--instruction", WORDS, "--head", "tail"), 2, ("--head tail", "actions", "full")),
    "adapter": (("--instruction", WORDS, "--adapter", "a"), 2, ("is an artifact", "merged already")),
    "dtype": (("--instruction", WORDS, "--dtype", "fp8"), 2, ("--dtype fp8", "bf16", "fp32")),
    "vision": (("--instruction", WORDS, "--vision", "tpu"), 2, ("--vision tpu", "torch", "onnx")),
    "kernel": (("--instruction", WORDS, "--kernel", "magic"), 2, ("kernel 'magic'", "auto", "reference")),
    "device": (("--instruction", WORDS, "--device", "tpu"), 2, ("--device tpu", "auto", "cpu", "cuda")),
    "no CUDA": (("--instruction", WORDS, "--device", "cuda"), 3, ("--device cuda", "no CUDA device", "nvidia-smi")),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_refused(
    name: str,
    tiny_artifacts: Mapping[int, Path],
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, code, words = CALLS[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command(capsys, "run", tiny_artifacts[4], "--image", picture, *options).refused_with(code, words)


@pytest.mark.parametrize("option", [("--vision", "onnx"), ("--kernel", "reference")])
def test_a_checkpoint_has_no_backends(option: tuple[str, str], picture: Path, capsys: Any) -> None:
    ended = command(capsys, "run", "random:openvla-tiny", "--image", picture, "--instruction", WORDS, *option)
    ended.refused_with(2, ["random:openvla-tiny is a checkpoint", "--vision and --kernel", "artifact"])


def test_which_data_set_must_be_said(
    golden_checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", golden_checkpoint, "--image", picture, "--instruction", WORDS)
    command(capsys, *arguments).refused_with(2, ["6 data sets", "unnorm_key", "bridge_orig", "libero_10_no_noops"])
    command(capsys, *arguments, "--unnorm-key", "x").refused_with(2, ["unknown unnorm_key 'x'", "bridge_orig"])
    assert command(capsys, *arguments, "--unnorm-key", "bridge_orig", "--json").code == 0


def fresh(policy: Policy, **changes: Any) -> Policy:
    network = dataclasses.replace(policy.network, **changes)
    return Policy(StagedEngine(network), policy.config, policy.prompter.tokenizer.to_str())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["vision", "one patch", "decode", "head"])
def test_a_non_finite_number_gives_no_action_and_no_memory_of_it(where: str, value: float, policy: Policy) -> None:
    """After the failure the same policy must answer as one that never saw it: a cache may not keep a NaN.

    The prompt fills its padding, so that what the decode steps write is not overwritten by the next prefill.
    """
    broken = [False]

    def spoil(tensor: Tensor, place: Any = ...) -> Tensor:
        if broken[0]:
            tensor = tensor.clone()
            tensor[place] = value
        return tensor

    def wrapped(function: Callable[..., Tensor], place: Any = ...) -> Callable[..., Tensor]:
        return lambda *arguments: spoil(function(*arguments), place)

    network = policy.network
    embeddings = network.embeddings.actions.clone()
    patches: dict[str, Any] = {
        "vision": lambda: fresh(policy, vision=wrapped(network.vision)),
        "one patch": lambda: fresh(policy, vision=wrapped(network.vision, (0, 1, 2))),
        "decode": lambda: fresh(policy),
        "head": lambda: fresh(policy, head=Wrapper(network.head, "choose", lambda choose: lambda x: choose(spoil(x)))),
    }
    ours = patches[where]()
    lengths = {
        text: len(policy.prompter(text)) + policy.config.spec.patches for text in (f"go{' up' * n}" for n in range(99))
    }
    words = next(text for text, rows in lengths.items() if rows % PAD_TO == 0)
    expected = policy.act(PICTURE, words)
    assert ours.act(PICTURE, words).tokens == expected.tokens
    broken[0] = True
    if where == "decode":
        network.embeddings.actions.fill_(value)
    with pytest.raises(EdgeVLAError) as caught:
        ours.act(PICTURE, words)
    network.embeddings.actions.copy_(embeddings)
    refused(caught, NumericError, ("non-finite", "no action"))
    broken[0] = False
    again = ours.act(PICTURE, words)
    assert again.tokens == expected.tokens
    assert again.margins == expected.margins
    assert np.array_equal(again.values, expected.values)


class Wrapper:
    """An object one of whose methods is wrapped."""

    def __init__(self, inner: Any, method: str, wrap: Callable[[Any], Any]) -> None:
        self.inner, self.method, self.wrap = inner, method, wrap

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self.wrap(found) if name == self.method else found


def test_statistics_that_overflow_give_no_action(policy: Policy) -> None:
    ours = fresh(policy)
    ours.use_statistics({"big": {"action": {"q01": [-1.7e308] * 7, "q99": [1.7e308] * 7}}})
    with pytest.warns(RuntimeWarning), pytest.raises(NumericError, match="non-finite action with 'big'"):
        ours.act(PICTURE, WORDS)


def test_given_statistics_are_checked(policy: Policy) -> None:
    ours = fresh(policy)
    wrong: list[Any] = [{}, ["a"], {"a": {}}]
    for raw in wrong:
        with pytest.raises(EdgeVLAError, match="the given statistics"):
            ours.use_statistics(raw)
    assert ours.act(PICTURE, WORDS).unnorm_key == "random"


def test_the_kind_of_an_error_survives_the_bench_process(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bench measures in processes of their own; a script still learns what was wrong."""
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "frames.jsonl").write_text('{"image": "a.png", "instruction": "go"}', encoding="utf-8")
    (frames / "a.png").write_bytes(b"no image")
    arguments = (tiny_artifacts[4], "--reference", "random:openvla-tiny", "--frames", frames)
    ended = command(capsys, "bench", *arguments, "--out", tmp_path / "report")
    ended.refused_with(FrameError.exit_code, ["a.png", "not an image"], lines=None)
    assert not (tmp_path / "report").exists()


def test_bench_compares_like_with_like(
    tiny_artifacts: Mapping[int, Path], golden_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tiny_artifacts[4]
    ended = command(capsys, "bench", artifact, "--reference", golden_checkpoint, "--out", tmp_path / "report")
    ended.refused_with(UsageError.exit_code, ["different networks", "give"])
    assert not (tmp_path / "report").exists()
    assert Artifact(artifact).manifest.source.origin == "random:openvla-tiny"
