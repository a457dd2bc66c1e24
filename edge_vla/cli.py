"""The command line: `edge-vla COMMAND`. The only file that prints; a room is imported when its command runs.

Results go to standard output, everything else to standard error. Exit codes are those of `edge_vla.errors`;
130 after Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.options import Adapters, Device, Floors, Kernel, MergeArithmetic, Peers, UnnormKey, Vision
from edge_vla.terminal import Bar, err, out, say, show_warning
from edge_vla.version import __version__

if TYPE_CHECKING:
    from edge_vla.export import Progress

app = typer.Typer(
    help="Put OpenVLA on a robot: merge adapters, quantise, export, run, and prove that it is still the same policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ARITHMETICS = ("fp32", "upstream")
TIMES = ("limit_ms", "low_ms", "high_ms")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint directory, Hub id, or random:openvla-7b.")],
    out_dir: Annotated[Path, typer.Option("--out", help="The artifact to make; must not exist.")],
    bits: Annotated[int | None, typer.Option(help="16, 8, 4, 3 or 2 (default 4).")] = None,
    group: Annotated[int | None, typer.Option(help="Weights per scale; default the largest of 128, 64, 32.")] = None,
    method: Annotated[
        str | None, typer.Option(help="rtn (default); with --frames gptq, awq, smoothquant or smoothquant+gptq.")
    ] = None,
    activations: Annotated[int | None, typer.Option(help="16 (default) or 8, with --bits 8.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Exponent of awq or smoothquant; default searched.")] = None,
    asymmetric: Annotated[bool | None, typer.Option("--asymmetric", help="Zero points, with --bits 4.")] = None,
    bpw: Annotated[
        float | None, typer.Option(help="Mixed bits: at most so many per decoder weight, where it pays; with gptq.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Mixed bits, the towers' too: at most so many bytes, like 4.2GB; with gptq.")
    ] = None,
    calibration_frames: Annotated[int | None, typer.Option(help="Frames to calibrate on (default 128).")] = None,
    vision_bits: Annotated[int | None, typer.Option(help="16 (default) or 8, of towers and projector.")] = None,
    form: Annotated[str, typer.Option("--format", help="artifact, gptq or compressed-tensors.")] = "artifact",
    decoder_only: Annotated[bool, typer.Option("--decoder-only", help="Other formats: just the Llama.")] = False,
    adapter: Adapters = None,
    merge_arithmetic: Annotated[str | None, typer.Option(help="fp32 (default) or upstream.")] = None,
    device: Annotated[str | None, typer.Option(help="Where gptq calculates: cpu (default) or cuda.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A TOML recipe; options given here override it.")] = None,
    frames: Annotated[
        Path | None, typer.Option(help="Frames for the golden frame, and with recorded actions to calibrate on.")
    ] = None,
) -> None:
    """Merge, quantise and export SRC to an artifact, or to a checkpoint that other programs load.

    The same command resumes one that was killed.
    """
    from dataclasses import replace

    from edge_vla.data import read_frames
    from edge_vla.export import Recipe
    from edge_vla.export import export as run_export
    from edge_vla.export.huggingface import export_checkpoint
    from edge_vla.export.recipe import METHODS, parse_bytes
    from edge_vla.interop import WRITTEN

    given: dict[str, Any] = {
        "bits": bits,
        "group": group,
        "merge_arithmetic": merge_arithmetic and choice("--merge-arithmetic", merge_arithmetic, ARITHMETICS),
        "method": method and choice("--method", method, METHODS),
        "bits_per_weight": bpw,
        "budget": None if budget is None else parse_bytes(budget),
        "calibration_frames": calibration_frames,
        "vision_bits": vision_bits,
        "activations": activations,
        "alpha": alpha,
        "asymmetric": asymmetric,
        "device": device,
    }
    base = Recipe.read(recipe) if recipe else Recipe()
    chosen = replace(base, **{name: value for name, value in given.items() if value is not None})
    choice("--format", form, ("artifact", *WRITTEN))
    if decoder_only and form == "artifact":
        raise UsageError(f"--decoder-only is for --format {' and '.join(WRITTEN)}: an artifact is a whole policy")
    shown = read_frames(frames) if frames else ()
    with export_progress() as progress:
        if form == "artifact":
            made = run_export(source, out_dir, chosen, adapter or (), shown, progress).identity[:12]
        else:
            export_checkpoint(source, out_dir, form, chosen, adapter or (), shown, progress, decoder_only=decoder_only)
            made = "decoder alone" if decoder_only else "whole policy"
    size = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
    err.print(f"{out_dir}: {size / 1e9:.3f} GB, {form}, {made}")


@app.command()
def run(
    path: Annotated[str, typer.Argument(help="An artifact, or a checkpoint as the reference.")],
    image: Annotated[Path, typer.Option(help="An image file.")],
    instruction: Annotated[str, typer.Option(help="What the robot should do.")],
    unnorm_key: UnnormKey = None,
    dtype: Annotated[str, typer.Option(help="Arithmetic: bf16 or fp32.")] = "bf16",
    head: Annotated[
        str, typer.Option(help="actions, or full (checkpoints): upstream's unconstrained decoding.")
    ] = "actions",
    adapter: Adapters = None,
    merge_arithmetic: MergeArithmetic = "fp32",
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the action as one JSON object.")] = False,
) -> None:
    """One action from one image and one instruction."""
    from edge_vla.data import open_image
    from edge_vla.runtime import load

    picture = open_image(image)
    policy = load(
        path,
        device,
        vision,
        dtype=dtype,
        head=choice("--head", head, ("actions", "full")),
        kernel=kernel,
        adapters=adapter or (),
        merge_arithmetic=choice("--merge-arithmetic", merge_arithmetic, ARITHMETICS),
    )
    action = policy.act(picture, instruction, unnorm_key)
    if as_json:
        print(json.dumps(action.to_json()))
        return
    table = Table("dimension", "token", "action", "lead")
    for i, token in enumerate(action.tokens):
        mark = " clipped: no action token" if action.clipped[i] else ""
        lead = f"{action.margins[i]:.2f}" if i < len(action.margins) else ""
        table.add_row(str(i), f"{token}{mark}", f"{action.values[i]:+.6f}", lead)
    out.print(table)
    total = action.timing_ms["total"]
    kernels = ", ".join(f"{scheme}: {name}" for scheme, name in action.kernels.items())
    err.print(f"{action.unnorm_key}, {total:.1f} ms ({kernels})")


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="The artifacts to judge.")],
    reference: Annotated[str, typer.Option(help="The checkpoint that they were made from.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the result and its reports go.")],
    frames: Annotated[Path | None, typer.Option(help="Frames (images, frames.jsonl); default synthetic.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N frames.", min=1)] = None,
    floor: Floors = None,
    profile: Annotated[
        str, typer.Option(help="How many queries are timed: none, few, quick, default, publish.")
    ] = "quick",
    pace: Annotated[list[float] | None, typer.Option(help="Also time at this rate in Hz; repeat for more.")] = None,
    peer: Peers = None,
    peer_frames: Annotated[Path | None, typer.Option(help="Frames for peers that calibrate: not those judged.")] = None,
    table: Annotated[str | None, typer.Option(help="Act in closed loop here: demo:1 or demo:2.")] = None,
    episodes: Annotated[int, typer.Option(help="Closed-loop episodes of each kind of task.", min=1)] = 400,
    margin: Annotated[float, typer.Option(help="Non-inferior within this share of episodes, declared before.")] = 0.03,
    live: Annotated[bool, typer.Option("--live", help="Also let the world go on while a policy thinks.")] = False,
    waterfall: Annotated[
        bool, typer.Option("--waterfall", help="Also where one action's time goes, and how near it is to the limit.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="What the tables call the policy.")] = None,
    agreement: Annotated[bool, typer.Option(help="Compare tokens; without, speed and memory alone.")] = True,
    time_reference: Annotated[bool, typer.Option(help="Time the reference too; it may not fit.")] = True,
    unnorm_key: UnnormKey = None,
    adapter: Adapters = None,
    merge_arithmetic: MergeArithmetic = "fp32",
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
) -> None:
    """Agreement, closed loop, latency and memory of artifacts against their reference. Exits with 1 on a red gate."""
    from edge_vla.bench.closed_loop import Trial
    from edge_vla.bench.plan import FLOORS, Plan, Reference
    from edge_vla.bench.reports import markdown
    from edge_vla.bench.run import bench as run_bench

    if live and not table:
        raise UsageError("--live is about episodes: say at which --table")
    judged_by = Reference(
        source=reference,
        adapters=tuple(map(str, adapter or ())),
        merge_arithmetic=choice("--merge-arithmetic", merge_arithmetic, ARITHMETICS),
        frames=frames,
        limit=limit,
        unnorm_key=unnorm_key,
        device=device,
    )
    plan = Plan(
        floors=tuple(floor or FLOORS[:1]),
        profile=profile,
        paces_hz=tuple(pace or ()),
        trial=Trial(table, episodes, margin, live) if table else None,
        peers=tuple((name, python or None) for name, _, python in (one.partition("=") for one in peer or ())),
        peer_frames=peer_frames,
        vision=vision,
        kernel=kernel,
        model=model,
        agreement=agreement,
        time_reference=time_reference,
        waterfall=waterfall,
    )
    with err.status("measuring") as status:
        result = run_bench(artifacts, judged_by, out_dir, plan, lambda stage: status.update(f"measuring: {stage}"))
    print(markdown(result))
    if any(gate["passed"] is False for gate in result["gates"]):
        raise typer.Exit(1)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A result.json.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """What changed from one bench result to another."""
    from edge_vla.bench import reports

    print(reports.compare(reports.read(before), reports.read(after)).markdown())


@app.command()
def plan(
    device: Annotated[str, typer.Option(help="orin-64, orin-nano-super, thor, rtx3090, rtx4090, rtx5090, h100, h200.")],
    bits: Annotated[int, typer.Option(help="16, 8 or 4.")] = 4,
    vision_bits: Annotated[int, typer.Option(help="16 or 8, of towers and projector.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """On paper: would OpenVLA-7B fit on a device, and how fast could it be there? Nothing is run."""
    from edge_vla.device.planner import plan as planned
    from edge_vla.spec import OPENVLA_7B

    found = planned(OPENVLA_7B, device, bits, 7, vision_bits)
    if as_json:
        print(json.dumps(found))
        return
    memory = Table("memory", "GB")
    for part, size in found["memory"].items():
        memory.add_row(part, f"{size / 1e9:.2f}")
    low, high = found["memory_range"]
    memory.add_row("with buffers and context", f"{low / 1e9:.1f} to {high / 1e9:.1f}")
    times = Table("stage", "limit, ms", "at what other engines reach, ms")
    for stage in (*found["stages"], {"name": "one action", **{key: found[key] for key in TIMES}}):
        times.add_row(stage["name"], f"{stage['limit_ms']:.1f}", f"{stage['low_ms']:.0f} to {stage['high_ms']:.0f}")
    out.print(memory, times)
    out.print(f"fits in {found['memory_usable'] / 1e9:.1f} usable GB of {found['device']}: {found['fits']}")
    out.print(
        f"{1e3 / found['high_ms']:.1f} to {1e3 / found['low_ms']:.1f} Hz, on paper ({found['from']}); not measured"
    )


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact directory.")],
    fast: Annotated[bool, typer.Option("--fast", help="Sizes and structure only: no hashing, no action.")] = False,
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
) -> None:
    """Check an artifact: every file's hash, then that its golden frames still give their tokens here."""
    from edge_vla.artifact import Artifact
    from edge_vla.runtime import load, replay

    opened = Artifact(artifact)
    frames = opened.manifest.golden
    err.print(f"structure: {len(opened.manifest.files)} files of the right size")
    if not fast:
        with err.status("hashing"):
            opened.verify()
        err.print("hashes: all as in the manifest")
        with err.status("replaying golden frames"):
            notes = replay(load(artifact, device, vision, kernel=kernel, check=False), artifact, frames)
        for note in notes:
            say("note", "yellow", note)
        err.print(f"golden frames: {len(frames) - len(notes)} of {len(frames)} give the recorded tokens")
    print(f"ok {opened.identity}")


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="An artifact, or a checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What is in an artifact or a checkpoint: parts, formats, bytes, data sets."""
    from edge_vla.inspection import describe

    description = describe(path)
    if as_json:
        print(json.dumps(description))
        return
    table = Table("part", "format", "tensors", "parameters", "bytes")
    for part in description["parts"]:
        cells = [part["part"], part["format"], str(part["tensors"]), f"{part['parameters']:,}", f"{part['bytes']:,}"]
        table.add_row(*cells)
    out.print(table)
    for name, value in description["facts"].items():
        out.print(f"{name}: {value}")


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Where everything goes; must not exist.")] = Path("demo-out"),
    episodes: Annotated[int, typer.Option(help="Closed-loop episodes of each policy.", min=1)] = 10,
    frames: Annotated[int, typer.Option(help="Frames compared with the reference.", min=1)] = 96,
) -> None:
    """The whole path on the embedded policy: merge, int4, ONNX, verify, bench, episodes, a picture, a report."""
    from edge_vla.demo.tour import tour

    with export_progress() as progress:
        report = tour(out_dir, episodes, frames, progress, err.print)
    print(report)


@contextmanager
def export_progress() -> Iterator[Progress]:
    bar = Bar()
    with bar.bar:
        yield bar


def choice(option: str, value: str, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise UsageError(f"{option} {value}: choose one of {list(allowed)}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: turns typed errors into one line and an exit code."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("edge_vla").setLevel(logging.DEBUG if os.environ.get("EDGE_VLA_DEBUG") else logging.WARNING)
    warnings.showwarning = show_warning
    call: Callable[..., Any] = app
    settings: Mapping[str, Any] = {} if arguments is None else {"args": list(arguments)}
    try:
        call(**settings)
    except EdgeVLAError as error:
        if os.environ.get("EDGE_VLA_DEBUG"):
            raise
        say("error", "red", str(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if os.environ.get("EDGE_VLA_DEBUG") or error.filename is None:
            raise
        say("error", "red", f"{error.filename}: {error.strerror}: see who owns it and who may read it")
        raise SystemExit(ResourceError.exit_code) from None
    except (MemoryError, RuntimeError) as error:
        # torch raises its own kinds of RuntimeError when memory runs out, and importing it here would slow --help.
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        say(
            "error",
            "red",
            f"out of memory ({str(error).strip().splitlines()[0]}): close other programs, or fewer --bits",
        )
        raise SystemExit(ResourceError.exit_code) from None


if __name__ == "__main__":
    main()
