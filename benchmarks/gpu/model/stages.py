"""Which counted rows a stage is made of, and how long they take together.

A stage's launches come by kernel: a product's are spread over the shapes of the policy's layers, any other kernel is
taken at the stage's number of rows. Each tower is a chain of its own, beside the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.gpu.configurations import CONFIGURATIONS, Configuration
from benchmarks.gpu.counted.kernels import PASS, PREFILL
from benchmarks.gpu.counted.launches import CHAINED
from benchmarks.gpu.counted.result import CountedResult, KernelRow, LaunchRow
from benchmarks.gpu.kernel_checks.passes import LAYERS as CHECKED_LAYERS
from benchmarks.gpu.model.devices import Device
from benchmarks.gpu.model.kernel import Constants, Work, work
from benchmarks.gpu.tune_shapes import KINDS, Shape, shapes
from edge_vla.runtime.gpu.kernels.decode_phases import PHASES, TASKS
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.spec import OPENVLA_7B

VISION: Final = "vision"
STEP: Final = "step"
STEP_ROWS: Final = 1
TASK: Final = 0.5  # of a barrier more where the last program must learn that it is, before it opens it: assumed too
BARRIER: Final = 0.4  # of a launch, about 1.4 us on an H200, as others measured a grid's barrier: assumed, never run
SIXTEEN: Final = 16  # bits, whose GEMMs are a library's
ANY_TOWER: Final = "w8a16_tower"  # a kind that has the towers' shapes


@dataclass(frozen=True, slots=True)
class Launched:
    """A counted row, how often it runs, and the rows that it multiplies."""

    row: KernelRow
    times: float
    rows: int

    def work(self, device: Device) -> Work:
        return work(self.row, self.rows, device)


@dataclass(frozen=True, slots=True)
class Chain:
    """Kernels one after the other. `launches` counts those without a row too; `library`: operations of a library."""

    kernels: tuple[Launched, ...] = ()
    launches: float = 0.0
    library: float = 0.0

    def us(self, device: Device, constants: Constants) -> float:
        ours = sum(one.times * one.work(device).us(constants.unhidden) for one in self.kernels)
        return ours + 1e6 * self.library / device.bf16 + self.launches * constants.launch_us

    def roofline_us(self, device: Device, launch_us: float) -> float:
        """By the first model, which was rejected."""
        ours = sum(one.times * one.work(device).roofline_us() for one in self.kernels)
        return ours + 1e6 * self.library / device.bf16 + self.launches * launch_us


@dataclass(frozen=True, slots=True)
class Stage:
    """`beside`: chains at the same time; `after`: one behind them. `unpriced` kernels have no row: launches alone."""

    configuration: str
    name: str
    times: int  # in an action
    beside: tuple[Chain, ...]
    after: Chain
    unpriced: tuple[str, ...]

    def ms(self, device: Device, constants: Constants) -> float:
        chains = [one.us(device, constants) for one in self.beside]
        together = max(chains) + constants.unhidden * (sum(chains) - max(chains))
        return (together + self.after.us(device, constants)) / 1e3

    def roofline_ms(self, device: Device, launch_us: float) -> float:
        """By the first model, which was rejected."""
        chains = [one.roofline_us(device, launch_us) for one in self.beside]
        return (max(chains) + self.after.roofline_us(device, launch_us)) / 1e3


def stages(table: CountedResult, chip: str) -> Iterator[Stage]:
    """Every stage of every configuration among the table's launches, with the kernels of one chip."""
    known = [row for row in table.kernels if row.chip == chip]
    configurations = {one.name: one for one in CONFIGURATIONS}
    for launched in table.launches:
        configuration = configurations[launched.configuration.removesuffix(CHAINED)]
        yield (_vision if launched.stage == VISION else _decoder)(launched, configuration, known)


def multiplied_rows(case: str) -> int:
    """The rows that a case multiplies: a product's own, else one or a prefill's."""
    known = {_case(one): one.m for shape in shapes(OPENVLA_7B, PREFILL, KINDS) for one in _at_both(shape)}
    return known.get(case, PREFILL if case.endswith(f", {PREFILL} rows") else STEP_ROWS)


def _at_both(shape: Shape) -> tuple[Shape, ...]:
    """A gemv is counted at one row and at the most that it takes."""
    return (shape, replace(shape, m=GEMV_ROWS)) if shape.kernel.endswith("gemv") else (shape,)


def _decoder(launched: LaunchRow, configuration: Configuration, known: Sequence[KernelRow]) -> Stage:
    rows = STEP_ROWS if launched.stage == STEP else PREFILL
    found, unpriced, barriers = list[Launched](), list[str](), 0.0
    for kernel, calls in launched.kernels.items():
        made = [(shape, row) for shape in _shapes(kernel) if (row := _of_shape(known, shape))]
        found += [Launched(row, calls / len(made), shape.m) for shape, row in made]
        if kernel == PASS:
            found += [Launched(row, calls, STEP_ROWS) for row in _passes(known, configuration)]
            barriers += calls * OPENVLA_7B.decoder.layers * (PHASES - TASKS + TASKS * TASK)
        elif not made:
            row = _at_rows(known, kernel, rows, configuration)
            found += [Launched(row, calls, rows)] if row else []
            unpriced += [] if row else [kernel]
    decoder = OPENVLA_7B.decoder
    weights = decoder.layers * sum(n * k for n, k in decoder.linears().values())
    library = 2.0 * rows * weights if configuration.bits == SIXTEEN and rows == PREFILL else 0.0
    chain = Chain(tuple(found), _launches(launched) + BARRIER * barriers, library)
    return Stage(launched.configuration, launched.stage, launched.times, (chain,), Chain(), tuple(unpriced))


def _passes(known: Sequence[KernelRow], configuration: Configuration) -> Iterator[KernelRow]:
    """The pass of this format through all layers; the table has one through CHECKED_LAYERS, whose code is the same."""
    kind = {4: "w4a16", 8: "w8a16", SIXTEEN: "w16"}[configuration.bits]
    layers = OPENVLA_7B.decoder.layers
    more = layers // CHECKED_LAYERS
    for row in known:
        if row.case == f"{PASS} {kind}, {STEP_ROWS} rows":
            yield replace(
                row,
                instructions=layers * (row.instructions - row.loop) + row.loop,
                moved_bytes=more * row.moved_bytes,
                operations=more * row.operations,
            )


def _at_rows(known: Sequence[KernelRow], kernel: str, rows: int, configuration: Configuration) -> KernelRow | None:
    """The kernel at so many rows, in the format that the configuration's products read; else at any rows."""
    to = {4: "int8 for int4", 8: "int8"}.get(configuration.bits) if configuration.activations == "8" else None
    names = (f"{kernel} to {to}, {rows} rows", f"{kernel}, {rows} rows")
    own = [row for row in known if row.kernel == kernel]
    exact = [row for name in names for row in own if row.case == name]
    bits = [row for row in own if f"{configuration.bits}-bit" in row.case and row.case.endswith(f"{rows} rows")]
    return next(iter([*exact, *bits, *own]), None)


def _vision(launched: LaunchRow, configuration: Configuration, known: Sequence[KernelRow]) -> Stage:
    towers, unpriced = OPENVLA_7B.towers, list[str]()
    blocks = {tower.name: tower.used_blocks for tower in towers}
    found: dict[str, list[Launched]] = {name: [] for name in (*blocks, "projector")}
    library = dict.fromkeys(found, 0.0)
    for kernel, calls in launched.kernels.items():
        made = [(shape, row) for shape in _shapes(kernel, towers=True) if (row := _of_shape(known, shape))]
        for shape, row in made:
            found[_owner(shape)].append(Launched(row, blocks.get(_owner(shape), 1), shape.m))
        for tower in towers if not made else ():
            cases = [
                f"{kernel} {width}, {tower.patches + tower.prefix} rows" for width in (tower.width, tower.mlp_width)
            ]
            own = [Launched(row, calls * blocks[tower.name] / sum(blocks.values()), 0)
                   for row in known if row.case in cases]  # fmt: skip
            found[tower.name] += own
            unpriced += [kernel] if not own and kernel not in unpriced else []
    for shape in shapes(OPENVLA_7B, PREFILL, (ANY_TOWER,)) if configuration.vision_bits == SIXTEEN else ():
        library[_owner(shape)] += 2.0 * shape.m * shape.n * shape.k * blocks.get(_owner(shape), 1)
    share = {name: _launches(launched) * own / sum(blocks.values()) for name, own in blocks.items()}
    *beside, after = [Chain(tuple(found[name]), share.get(name, 0.0), library[name]) for name in found]
    return Stage(launched.configuration, VISION, launched.times, tuple(beside), after, tuple(unpriced))


def _launches(launched: LaunchRow) -> int:
    return sum(launched.kernels.values()) + launched.torch


def _owner(shape: Shape) -> str:
    """The tower, or the projector, that has this product."""
    return shape.name.rpartition(" ")[0]


def _shapes(kernel: str, *, towers: bool = False) -> list[Shape]:
    """Of a product kernel; none of any other."""
    kind = kernel.replace("_gemm", "_tower") if towers else kernel
    return list(shapes(OPENVLA_7B, PREFILL, (kind,))) if kind in KINDS else []


def _of_shape(known: Sequence[KernelRow], shape: Shape) -> KernelRow | None:
    return next((row for row in known if (row.case, row.kernel) == (_case(shape), shape.kernel)), None)


def _case(shape: Shape) -> str:
    """As the counted table names it."""
    return f"{shape.kind} {shape.name} {shape.n}x{shape.k}, {shape.m} rows"
