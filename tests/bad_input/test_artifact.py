"""A tampered, incomplete or foreign artifact is refused: every file, every key of its manifest."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edge_vla.artifact import EMBEDDINGS, HEAD, MANIFEST, VISION, Artifact
from edge_vla.errors import ArtifactError, EdgeVLAError
from edge_vla.runtime import load
from tests.bad_input.damage import (
    Fault,
    command,
    cut,
    edit_json,
    edit_tensors,
    flip,
    names,
    put,
    refused,
    spoil,
)

LAYER = "decoder/layer-000.safetensors"
FLIPS = 12  # of each file, besides its first and last bit
MANIFEST_FLIPS = 600


@pytest.fixture
def artifact(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifacts[4], tmp_path / "artifact"))


def entry(raw: Any, *path: str | int) -> Any:
    for key in path:
        raw = raw[key]
    return raw


def manifest(value: object, *path: str | int) -> Any:
    """Damage that sets one key of the manifest."""
    return lambda d: edit_json(d / MANIFEST, lambda raw: entry(raw, *path[:-1]).__setitem__(path[-1], value))


def dropped(*path: str | int) -> Any:
    return lambda d: edit_json(d / MANIFEST, lambda raw: entry(raw, *path[:-1]).pop(path[-1]))


def renamed(old: str, new: str) -> Any:
    """Damage that lists a file under another name."""
    return lambda d: edit_json(d / MANIFEST, lambda raw: raw["files"].__setitem__(new, raw["files"].pop(old)))


def also(name: str) -> Any:
    """Damage that lists the head a second time, under another name."""
    return lambda d: edit_json(d / MANIFEST, lambda raw: raw["files"].__setitem__(name, raw["files"][HEAD]))


def forged(name: str, change: Any) -> Any:
    """Damage of a file whose new hash and size are put into the manifest."""

    def damage(directory: Path) -> None:
        change(directory / name)
        content = (directory / name).read_bytes()
        honest = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest(honest, "files", name)(directory)

    return damage


def forged_tensors(name: str, change: Any) -> Any:
    return forged(name, lambda path: edit_tensors(path, change))


def linked(name: str) -> Any:
    """Damage that moves a file or folder out of the artifact and puts a link in its place."""

    def damage(directory: Path) -> None:
        outside = directory.parent / "outside"
        shutil.move(directory / name, outside)
        (directory / name).symlink_to(outside)

    return damage


def flipped_code(path: Path) -> None:
    flip(path, 8 * (path.stat().st_size - 1))


def all_scales(value: float) -> Any:
    return lambda tensors: tensors.__setitem__(
        "mlp.down_proj.scales", torch.full_like(tensors["mlp.down_proj.scales"], value)
    )


def other_tokens(directory: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        frame = raw["golden"][0]
        frame["tokens"][0] += 1
        frame["margins"], frame["noise"] = [5.0] * len(frame["margins"]), 0.1

    edit_json(directory / MANIFEST, change)


def link_to_self(directory: Path) -> None:
    (directory / HEAD).unlink()
    (directory / HEAD).symlink_to(HEAD)


NORM, CODES = "input_layernorm.weight", "mlp.down_proj.weight"
FIRST = ("layers", 0, "mlp.down_proj")
# Found when the artifact is opened.
STRUCTURE = [
    Fault("no manifest", lambda d: (d / MANIFEST).unlink(), ArtifactError, ("not an artifact", MANIFEST)),
    Fault("manifest empty", lambda d: put(d / MANIFEST, ""), ArtifactError, (MANIFEST, "JSON", "export again")),
    Fault("manifest cut", lambda d: cut(d / MANIFEST, -5), ArtifactError, (MANIFEST, "JSON", "export again")),
    Fault("manifest a list", lambda d: put(d / MANIFEST, "[]"), ArtifactError, (MANIFEST, "object", "list")),
    Fault("manifest not UTF-8", lambda d: put(d / MANIFEST, b"\xff\xfe{"), ArtifactError, (MANIFEST, "JSON")),
    Fault("manifest nested", lambda d: put(d / MANIFEST, "[" * 200_000), ArtifactError, (MANIFEST, "JSON")),
    Fault("other format", manifest("gguf", "format"), ArtifactError, ("'gguf'", "expected 'edge-vla'")),
    Fault("no format", dropped("format"), ArtifactError, ("None", "expected 'edge-vla'")),
    *(
        Fault(f"version {version!r}", manifest(version, "version"), ArtifactError, (repr(version), "reads 1", "again"))
        for version in (4, 0, "1", 1.0, True, None)
    ),
    *(
        Fault(f"no {key}", dropped(key), ArtifactError, (MANIFEST, "malformed", key, "export again"))
        for key in (
            *("source", "recipe", "network", "prompt", "preprocessing", "statistics"),
            *("layers", "vision_check", "golden", "files"),
        )
    ),
    Fault("files a list", manifest([1], "files"), ArtifactError, (MANIFEST, "malformed", "export again")),
    Fault("source a number", manifest(1, "source"), ArtifactError, (MANIFEST, "malformed", "export again")),
    Fault("no size", dropped("files", HEAD, "size"), ArtifactError, ("malformed", "size")),
    Fault("no sha256", dropped("files", HEAD, "sha256"), ArtifactError, ("malformed", "sha256")),
    Fault("size 8472.0", manifest(8472.0, "files", HEAD, "size"), ArtifactError, (HEAD, "expected int, got 8472.0")),
    Fault("sha256 short", manifest("abc", "files", HEAD, "sha256"), ArtifactError, (HEAD, "64 hexadecimal")),
    Fault("sha256 capital", manifest("A" * 64, "files", HEAD, "sha256"), ArtifactError, (HEAD, "64 hexadecimal")),
    *(
        Fault(f"unlisted {name}", dropped("files", name), ArtifactError, (name, "no hash", "export again"))
        for name in (HEAD, VISION, EMBEDDINGS, LAYER, "vision.onnx", "tokenizer.json", "golden/000.png")
    ),
    *(
        Fault(f"path {name}", also(name), ArtifactError, (repr(name), "outside the artifact or a link"))
        for name in ("../outside", "/etc/passwd", "decoder/../../outside", f"./{HEAD}", f"decoder/../{HEAD}", "a\0b")
    ),
    Fault("path empty", also(""), ArtifactError, ("outside",)),
    Fault("golden outside", manifest("../x.png", "golden", 0, "image"), ArtifactError, ("../x.png", "no hash")),
    Fault("a link", linked(HEAD), ArtifactError, (HEAD, "a link")),
    Fault("a link to itself", link_to_self, ArtifactError, (HEAD,)),
    Fault("a linked folder", linked("decoder"), ArtifactError, ("layer-000", "a link")),
    Fault("a file missing", lambda d: (d / LAYER).unlink(), ArtifactError, (LAYER, "missing", "export")),
    Fault("a folder missing", lambda d: shutil.rmtree(d / "decoder"), ArtifactError, (LAYER, "missing", "export")),
    Fault("a folder for a file", renamed("tokenizer.json", "decoder"), ArtifactError, ("tokenizer.json",)),
    Fault("a layer less", lambda d: edit_json(d / MANIFEST, lambda r: r["layers"].pop()), ArtifactError, ("layers",)),
    Fault("a linear less", dropped(*FIRST), ArtifactError, ("layers", "network")),
    Fault("a wrong linear", manifest([64, 64], *FIRST, "shape"), ArtifactError, ("layers", "network")),
    Fault("a shape of one", manifest([64], *FIRST, "shape"), ArtifactError, ("malformed",)),
    Fault("unknown scheme", manifest("int5", *FIRST, "scheme"), ArtifactError, ("malformed", "int5")),
    Fault("group 0", manifest(0, *FIRST, "group"), ArtifactError, ("malformed", "group", "0")),
    Fault("group a text", manifest("64", *FIRST, "group"), ArtifactError, ("malformed", "group", "'64'")),
    Fault("unknown prompt", manifest("v02", "prompt"), ArtifactError, ("malformed", "v02")),
    Fault("unknown resize", manifest("crop", "preprocessing", "resize"), ArtifactError, ("malformed", "crop")),
    Fault("other size", manifest(56, "preprocessing", "size"), ArtifactError, ("preprocessing", "network")),
    Fault("heads", manifest(5, "network", "decoder", "heads"), ArtifactError, ("malformed", "heads 5")),
    Fault("width a text", manifest("64", "network", "decoder", "width"), ArtifactError, ("malformed", "'64'")),
    Fault("unknown key", manifest(1, "network", "decoder", "bias"), ArtifactError, ("malformed", "bias")),
    Fault("statistics empty", manifest({}, "statistics"), ArtifactError, ("statistics",)),
    Fault("malformed statistics", manifest({"a": 1}, "statistics"), ArtifactError, ("malformed", "'action'")),
    Fault("golden key", manifest("nobody", "golden", 0, "unnorm_key"), ArtifactError, ("golden", "statistics")),
    Fault("golden texts", manifest(["1"] * 7, "golden", 0, "tokens"), ArtifactError, ("golden", "expected int")),
    Fault("golden noise", manifest("0.1", "golden", 0, "noise"), ArtifactError, ("golden", "expected float")),
    Fault("no origin", dropped("source", "origin"), ArtifactError, ("malformed", "origin")),
    Fault("golden tokens", manifest([1], "golden", 0, "tokens"), ArtifactError, ("golden", "statistics")),
]  # fmt: skip
# Consistent lies: every hash is right, so only what the numbers mean can give them away.
FORGED = [
    Fault("code flipped", lambda d: flipped_code(d / LAYER), ArtifactError, (LAYER, "sha256", "export")),
    Fault("scales NaN", forged_tensors(LAYER, all_scales(float("nan"))), ArtifactError, (LAYER, "finite")),
    Fault("scales negative", forged_tensors(LAYER, all_scales(-1.0)), ArtifactError, (LAYER, "positive")),
    Fault("no scales", forged_tensors(LAYER, lambda t: t.pop("mlp.down_proj.scales")), ArtifactError, ("down_proj",)),
    Fault("no norm", forged_tensors(LAYER, lambda t: t.pop("input_layernorm.weight")), ArtifactError, ("layernorm",)),
    Fault("norm short", forged_tensors(LAYER, lambda t: t.update({NORM: t[NORM][1:].clone()})), ArtifactError,
          (NORM, "(63,)", "(64,)")),
    Fault("norm wide", forged_tensors(LAYER, lambda t: t.update({NORM: t[NORM].float()})), ArtifactError,
          (NORM, "float32", "16 bits")),
    Fault("head wide", forged_tensors(HEAD, lambda t: t.update(actions=t["actions"].float())), ArtifactError,
          ("actions", "float32", "16 bits")),
    Fault("codes wide", forged_tensors(LAYER, lambda t: t.update({CODES: t[CODES].int()})), ArtifactError,
          ("down_proj", "int32", "int4")),
    Fault("odd group", manifest(3, *FIRST, "group"), ArtifactError, ("down_proj", "group 3", "even")),
    Fault("scheme lies", manifest("int8", *FIRST, "scheme"), ArtifactError, (LAYER, "int8", "codes")),
    Fault("group lies", manifest(32, *FIRST, "group"), ArtifactError, (LAYER, "scales")),
    Fault("head short", forged_tensors(HEAD, lambda t: t.__setitem__("actions", t["actions"][1:].clone())),
          ArtifactError, (HEAD, "actions", "(63, 64)", "(64, 64)")),
    Fault("tower missing", forged_tensors(VISION, lambda t: t.pop("projector.fc1.bias")), ArtifactError, ("fc1.bias",)),
    Fault("no table", forged_tensors(EMBEDDINGS, lambda t: t.update(x=t.pop("embed_tokens.weight"))), ArtifactError,
          ("embed_tokens", "export")),
    Fault("table short", forged_tensors(EMBEDDINGS, lambda t: t.__setitem__("embed_tokens.weight", torch.zeros(9, 64))),
          ArtifactError, (EMBEDDINGS, "(9, 64)")),
    Fault("not safetensors", forged(HEAD, lambda path: put(path, b"x" * 99)), ArtifactError, (HEAD, "cannot be read")),
    Fault("not a table", forged(EMBEDDINGS, lambda path: put(path, b"x" * 99)), ArtifactError, (EMBEDDINGS, "mapped")),
    Fault("tokenizer not UTF-8", forged("tokenizer.json", lambda path: put(path, b"\xff")), ArtifactError, ("utf-8",)),
    Fault("other tokens", other_tokens, ArtifactError, ("golden", "dimension 0", "--kernel reference")),
]  # fmt: skip


def test_the_sound_artifact_opens(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise every test below would pass for a wrong reason."""
    opened = Artifact(artifact)
    opened.verify()
    ended = command(capsys, "verify", artifact)
    assert (ended.code, ended.stdout) == (0, f"ok {opened.identity}\n")


@pytest.mark.parametrize("fault", STRUCTURE, ids=names(STRUCTURE))
def test_a_malformed_artifact_does_not_open(fault: Fault, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault.damage(artifact)
    with pytest.raises(EdgeVLAError) as caught:
        Artifact(artifact)
    refused(caught, fault.error, fault.words)
    command(capsys, "verify", "--fast", artifact).refused_with(6, fault.words)


@pytest.mark.parametrize("fault", FORGED, ids=names(FORGED))
def test_a_forged_artifact_does_not_load(fault: Fault, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = Artifact(artifact).identity
    fault.damage(artifact)
    with pytest.raises(EdgeVLAError) as caught:
        load(artifact)
    refused(caught, fault.error, fault.words)
    command(capsys, "verify", artifact).refused_with(6, fault.words, lines=None)
    assert fault.name == "code flipped" or Artifact(artifact).identity != identity


def test_every_flip_and_cut_of_every_file_is_detected(artifact: Path) -> None:
    dice = random.Random(0)
    for name in Artifact(artifact).manifest.files:
        path = artifact / name
        sound = path.read_bytes()
        bits = [0, 8 * len(sound) - 1, *(dice.randrange(8 * len(sound)) for _ in range(FLIPS))]
        for bit in bits:
            flip(path, bit)
            with pytest.raises(ArtifactError, match=r"sha256.*changed or damaged") as caught:
                Artifact(artifact).verify()
            assert name in str(caught.value)
            put(path, sound)
        for content in (sound[:-1], sound + b"\0", b""):
            put(path, content)
            with pytest.raises(ArtifactError, match=rf"{len(content)} bytes, the manifest says {len(sound)}"):
                Artifact(artifact)
        put(path, sound)
    Artifact(artifact).verify()


@pytest.mark.filterwarnings("ignore::edge_vla.errors.EdgeVLAWarning")  # a flipped golden token may be a near-tie
def test_a_flipped_manifest_is_refused_or_another_identity(artifact: Path) -> None:
    """A flip may still be a manifest, of a policy with another name: then it acts, or is refused in words."""
    sound, identity = (artifact / MANIFEST).read_bytes(), Artifact(artifact).identity
    dice, refusals, renames = random.Random(0), 0, 0
    for bit in dice.sample(range(8 * len(sound)), MANIFEST_FLIPS):
        put(artifact / MANIFEST, sound)
        flip(artifact / MANIFEST, bit)
        try:
            opened = Artifact(artifact)
            assert opened.identity != identity
            renames += 1
            load(artifact)
        except ArtifactError:
            refusals += 1
    assert refusals > MANIFEST_FLIPS // 2
    assert renames > 0


def test_a_directory_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(capsys, "verify", tmp_path).refused_with(6, [str(tmp_path), "not an artifact", MANIFEST])
    nowhere = tmp_path / "nowhere"
    command(capsys, "verify", nowhere).refused_with(2, [str(nowhere), "no such directory"])


def test_a_directory_around_one(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(capsys, "verify", artifact.parent).refused_with(6, [f"did you mean {artifact}?"])
    picture = artifact / "golden" / "000.png"
    run = ("run", artifact.parent, "--image", picture, "--instruction", "x")
    command(capsys, *run).refused_with(2, [f"did you mean {artifact}?"])


def test_stray_files_change_nothing(artifact: Path) -> None:
    """Evidence and cards lie outside the hashes."""
    identity = Artifact(artifact).identity
    (artifact / "evidence").mkdir(exist_ok=True)
    (artifact / "evidence" / "bench.json").write_text("{}", encoding="utf-8")
    opened = Artifact(artifact)
    opened.verify()
    assert opened.identity == identity


def test_a_number_that_is_not_finite_never_becomes_an_action(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged_tensors(HEAD, lambda tensors: spoil(tensors, "actions", float("nan")))(artifact)
    command(capsys, "verify", artifact).refused_with(6, ["non-finite", "no action"], lines=None)


def test_the_format_page_names_every_key(artifact: Path) -> None:
    """export/FORMAT.md is the contract: each key of a real manifest, and each tensor of its files, is in it."""
    page = (Path(__file__).parents[2] / "export" / "FORMAT.md").read_text(encoding="utf-8")
    raw = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    keys = set(raw)
    for part in (raw["source"], raw["recipe"], raw["network"], raw["preprocessing"], raw["vision_check"]):
        keys |= set(part)
    keys |= {key for part in (*raw["network"]["towers"], raw["network"]["decoder"]) for key in part}
    keys |= set(raw["network"]["action"]) | set(raw["golden"][0]) | set(raw["layers"][0]) | set(entry(raw, *FIRST))
    keys |= set(raw["files"][HEAD]) | set(load_file(artifact / HEAD)) | set(load_file(artifact / EMBEDDINGS))
    keys |= {"q01", "q99", "mask", "input_layernorm.weight", "post_attention_layernorm.weight"}
    assert len(keys) > 60
    assert sorted(key for key in keys if f"`{key}`" not in page) == []
