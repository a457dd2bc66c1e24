"""manifest.json as types: everything about an artifact that is not a weight.

Knows keys, versions and what must fit together. Knows nothing of directories or tensors.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from edge_vla import typed_json
from edge_vla.errors import ArtifactError, CheckpointError
from edge_vla.files import FileRecord
from edge_vla.openvla import ImageContract, PolicyConfig, PromptStyle, Statistics
from edge_vla.quant import NARROW, Scheme
from edge_vla.spec import PolicySpec

FORMAT: Final = "edge-vla"
VERSIONS: Final = (1, 2, 3)  # that are read; 2 adds int3, int2 and int8 towers, 3 uint4 and w8a8
MANIFEST: Final = "manifest.json"
EVIDENCE: Final = "evidence"
VISION: Final = "vision.safetensors"
GRAPH: Final = "vision.onnx"
EMBEDDINGS: Final = "embeddings.safetensors"
HEAD: Final = "head.safetensors"
TOKENIZER: Final = "tokenizer.json"


def layer_file(index: int) -> str:
    return f"decoder/layer-{index:03d}.safetensors"


@dataclass(frozen=True)
class Linear:
    """How one linear layer is stored; `error` is the rounding error's norm over the weight's."""

    scheme: Scheme
    shape: tuple[int, int]  # (out_features, in_features)
    group: int | None
    error: float

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 1:
            raise ValueError(f"group must be a positive number or null, got {self.group}")


@dataclass(frozen=True)
class GoldenSteps:
    """What a golden frame was on its way to an action. Tokens alone may forgive a wrong step.

    `prompt` is what the network read, `pixels` the mean pixel value of each channel's four quarters, `action` in robot
    units what the tokens mean.
    """

    prompt: tuple[int, ...]
    pixels: tuple[tuple[float, ...], ...]
    action: tuple[float, ...]


@dataclass(frozen=True)
class RecordedFrame:
    """A golden frame as `golden` lists it."""

    image: str
    instruction: str
    unnorm_key: str
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    noise: float


@dataclass(frozen=True)
class GoldenFrame(RecordedFrame):
    """A frame whose tokens this artifact gave when it was made.

    `noise` is how far rounding alone may move a margin: twice the most that rounding-sized noise in every block and
    layer did. Artifacts before 0.2 have no `steps`.
    """

    steps: GoldenSteps | None = None

    def recorded(self) -> dict[str, object]:
        """As `golden` lists it; `golden_steps` has the rest, because a reader need not know it."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(RecordedFrame)}


@dataclass(frozen=True)
class Source:
    """Where the weights came from; `adapters` is how many were merged."""

    origin: str
    adapters: int
    files: tuple[dict[str, str], ...] = ()  # SHA-256 by file name: the base's, then each adapter's


@dataclass(frozen=True)
class Calibration:
    """The frames that codes were chosen on."""

    frames: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RecordedRecipe:
    """The recipe that an artifact was exported with; `edge_vla.export.Recipe` explains the fields.

    The defaults belong to the format: they are what a missing key means.
    """

    bits: int
    group: int | None = None
    merge_arithmetic: str = "fp32"
    method: str = "rtn"
    calibration_frames: int = 128
    seed: int = 0
    bits_per_weight: float | None = None
    budget: int | None = None
    vision_bits: int = 16
    activations: int | None = None
    alpha: float | None = None
    asymmetric: bool = False
    device: str = "cpu"
    rotate: bool = False
    calibration: Calibration | None = None

    def to_json(self) -> dict[str, object]:
        """The first three values always, the others where they are not the default; in the manifest's order.

        A rotation's seed is always among them: it decides the weights.
        """
        default, values = RecordedRecipe(bits=self.bits), dataclasses.asdict(self)
        always = {"bits", "group", "merge_arithmetic", *(["seed"] if self.rotate else [])}
        return {name: values[name] for name in sorted(values) if name in always or values[name] != vars(default)[name]}


@dataclass(frozen=True)
class VisionCheck:
    """The ONNX graph against torch on one image: the largest difference, and the largest value."""

    max_difference: float
    max_magnitude: float


@dataclass(frozen=True)
class Manifest:
    """`layers[i][name]` describes one linear; `files` is by path, relative to the artifact."""

    config: PolicyConfig
    source: Source
    recipe: RecordedRecipe
    layers: tuple[Mapping[str, Linear], ...]
    vision_check: VisionCheck
    golden: tuple[GoldenFrame, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The oldest whose readers understand it."""
        schemes = {linear.scheme for layer in self.layers for linear in layer.values()}
        if schemes & {Scheme.UINT4, Scheme.W8A8}:
            return 3
        return 2 if schemes & set(NARROW) or self.recipe.vision_bits != 16 else 1

    def to_json(self) -> dict[str, object]:
        steps = [dataclasses.asdict(frame.steps) for frame in self.golden if frame.steps is not None]
        return {
            "format": FORMAT,
            "version": self.version,
            "source": dataclasses.asdict(self.source),
            "recipe": self.recipe.to_json(),
            "network": dataclasses.asdict(self.config.spec),
            "prompt": self.config.prompt.value,
            "preprocessing": dataclasses.asdict(self.config.image),
            "statistics": self.config.statistics.raw,
            "layers": [{name: dataclasses.asdict(linear) for name, linear in layer.items()} for layer in self.layers],
            "vision_check": dataclasses.asdict(self.vision_check),
            "golden": [frame.recorded() for frame in self.golden],
            **({"golden_steps": steps} if steps and len(steps) == len(self.golden) else {}),
            "files": {path: dataclasses.asdict(record) for path, record in sorted(self.files.items())},
        }

    @staticmethod
    def from_json(raw: object) -> Manifest:
        """What `json.loads` returned; ArtifactError says which key is missing or wrong."""
        if not isinstance(raw, dict):
            raise ArtifactError(f"{MANIFEST}: expected a JSON object, got {type(raw).__name__}")
        if raw.get("format") != FORMAT:
            raise ArtifactError(f"{MANIFEST}: format is {raw.get('format')!r}, expected {FORMAT!r}")
        if type(raw.get("version")) is not int or raw["version"] not in VERSIONS:
            known = ", ".join(map(str, VERSIONS[:-1])) + f" and {VERSIONS[-1]}"
            raise ArtifactError(
                f"{MANIFEST}: format version {raw.get('version')!r}, this edge-vla reads {known}: export again, "
                "or install the edge-vla that made it"
            )
        try:
            config = PolicyConfig(
                spec=typed_json.from_json(PolicySpec, raw["network"], "network"),
                prompt=PromptStyle(raw["prompt"]),
                image=typed_json.from_json(ImageContract, raw["preprocessing"], "preprocessing"),
                statistics=Statistics(raw["statistics"], MANIFEST),
            )
            return Manifest(
                config=config,
                source=typed_json.from_json(Source, raw["source"], "source", ignore_unknown=True),
                recipe=typed_json.from_json(RecordedRecipe, raw["recipe"], "recipe", ignore_unknown=True),
                layers=typed_json.from_json(tuple[dict[str, Linear], ...], raw["layers"], "layers"),
                vision_check=typed_json.from_json(
                    VisionCheck, raw["vision_check"], "vision_check", ignore_unknown=True
                ),
                golden=_golden(raw["golden"], raw.get("golden_steps")),
                files=typed_json.from_json(dict[str, FileRecord], raw["files"], "files"),
            )._check()
        except (KeyError, TypeError, ValueError, CheckpointError) as error:
            raise ArtifactError(f"{MANIFEST} is malformed ({error!r}): export again") from error

    def _check(self) -> Manifest:
        """Itself, or ArtifactError if its parts do not fit each other."""
        image, linears = self.config.image, self.config.spec.decoder.linears()
        if image.size != self.config.spec.image_size or len(image.means) != len(self.config.spec.towers):
            raise ArtifactError(f"{MANIFEST}: the preprocessing is not that of its network: export again")
        if len(self.layers) != self.config.spec.decoder.layers or any(
            {name: linear.shape for name, linear in layer.items()} != linears for layer in self.layers
        ):
            raise ArtifactError(f"{MANIFEST}: the layers are not those of its network: export again")
        if broken := [*self.config.statistics.unsound.values(), *self.config.statistics.strays.values()]:
            raise ArtifactError(f"{MANIFEST} is malformed ({broken[0]}): export again")
        needed = {EMBEDDINGS, HEAD, TOKENIZER, VISION, GRAPH, *map(layer_file, range(len(self.layers)))}
        unlisted = sorted((needed | {frame.image for frame in self.golden}) - set(self.files))
        if unlisted:
            raise ArtifactError(f"{MANIFEST} has no hash of {unlisted[0]}, which the policy needs: export again")
        for path, record in self.files.items():
            if not re.fullmatch("[0-9a-f]{64}", record.sha256):
                raise ValueError(f"files.{path}: sha256 must be 64 hexadecimal digits, got {record.sha256!r:.80}")
        for frame in self.golden:
            key, lengths = frame.unnorm_key, {len(frame.tokens), len(frame.margins)}
            if key not in self.config.statistics or lengths != {self.config.statistics[key].dims}:
                raise ArtifactError(f"{MANIFEST}: golden frame {frame.image} does not fit the statistics: export again")
            quarters = [len(quarter) for quarter in frame.steps.pixels] if frame.steps else []
            if frame.steps and (len(frame.steps.action) not in lengths or quarters != [4] * 3 * len(image.means)):
                raise ArtifactError(f"{MANIFEST}: the steps of {frame.image} do not fit its policy: export again")
        return self


def _golden(frames: object, steps: object) -> tuple[GoldenFrame, ...]:
    """`golden` and, where the artifact has it, `golden_steps`, which may hold keys that this version does not know."""
    recorded = typed_json.from_json(tuple[RecordedFrame, ...], frames, "golden")
    if steps is None:
        return tuple(GoldenFrame(**vars(frame)) for frame in recorded)
    known = typed_json.from_json(tuple[GoldenSteps, ...], steps, "golden_steps", ignore_unknown=True)
    if len(known) != len(recorded):
        raise ValueError(f"golden_steps: expected one for each of {len(recorded)} golden frames, got {len(known)}")
    return tuple(GoldenFrame(**vars(frame), steps=one) for frame, one in zip(recorded, known, strict=True))
