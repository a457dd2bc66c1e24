"""The command line: `edge-vla COMMAND`. With `commands/` and `terminal.py` the only place that prints.

Results go to standard output, everything else to standard error. Exit codes are those of `edge_vla.errors`; 130 after
Ctrl-C, 70 for a fault of ours. Knows commands and errors; a package is imported when its command runs.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edge_vla.commands.act import act
from edge_vla.commands.bench import bench, compare
from edge_vla.commands.build_engine import build_engine
from edge_vla.commands.demo import demo
from edge_vla.commands.doctor import doctor
from edge_vla.commands.export import export
from edge_vla.commands.hub import pull, push
from edge_vla.commands.inspect import inspect, verify
from edge_vla.commands.plan import plan
from edge_vla.commands.ros2 import ros2
from edge_vla.commands.run import run
from edge_vla.commands.serve import serve
from edge_vla.errors import EdgeVLAError, ResourceError
from edge_vla.options import modernise
from edge_vla.terminal import out, say, show_warning
from edge_vla.version import __version__

BUG: Final = 70  # as sysexits.h has it
INTERRUPTED: Final = 130
WIDEST: Final = 100
EXIT_CODES: Final = """\b
Exit codes:
    0  done
    1  a gate is red
    2  an option, a path or a combination that is not there or does not fit
    3  this machine lacks a package, a device or an instruction
    4  the checkpoint, adapter, image or frames are not sound
    5  disk, memory or permission
    6  the artifact is damaged, or a number was not finite
   70  a fault of edge-vla itself
  130  Ctrl-C
"""
# In the order of their use.
COMMANDS: Final[Mapping[Callable[..., None], str]] = {
    export: "Merge adapters, quantise, and write an artifact.",
    verify: "Is an artifact whole, and does it act here as recorded?",
    inspect: "What a folder is, and what of it is read.",
    run: "An action from an image, or one each of a folder or video.",
    bench: "Is it still the same policy, and how fast?",
    compare: "What changed from one bench to another.",
    build_engine: "A TensorRT engine of the vision, on the device.",
    act: "The closed loop: camera, policy, limits, robot.",
    serve: "One policy for many robots over the network.",
    pull: "An artifact from the Hugging Face Hub, every hash checked.",
    push: "An artifact to the Hugging Face Hub.",
    plan: "On paper: would the 7B fit on a device, how fast?",
    doctor: "What on this machine stops or slows a policy.",
    demo: "The whole path on a small policy that is built in.",
}

app = typer.Typer(
    help="Put OpenVLA on a robot: merge adapters, quantise, export, run, and prove that it is still the same policy.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut the names of options at 80 columns
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)
for command, short in COMMANDS.items():
    app.command(short_help=short)(command)
# Most of its options are ROS's.
app.command(short_help="The policy as a ROS 2 node.", context_settings={"ignore_unknown_options": True})(ros2)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: turns typed errors into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII alone, a path of any bytes
    debug = bool(os.environ.get("EDGE_VLA_DEBUG"))
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("edge_vla").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = show_warning
    current, notices = modernise(sys.argv[1:] if arguments is None else arguments)
    for notice in notices:
        say("deprecated", "yellow", notice)
    call: Callable[..., Any] = app
    try:
        try:
            call(args=current)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted", "yellow", "nothing is under way any more; the same command starts anew")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            discard_output()  # what is left in its buffer would fail once more at the end
        if debug:
            raise
        message, code = explained(error)
        if message:
            say("error", "red", message)
        raise SystemExit(code) from None


def explained(error: Exception) -> tuple[str, int]:
    """What to print for an error, and its exit code."""
    if isinstance(error, EdgeVLAError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        return "", ResourceError.exit_code  # who reads has gone: nobody to say it to
    if isinstance(error, OSError) and error.filename is None:
        return f"cannot write the output: {error.strerror or error}", ResourceError.exit_code
    if isinstance(error, OSError):
        reason = f"{error.filename}: {error.strerror}: check that it exists and that you may read it"
        return reason, ResourceError.exit_code
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    # torch raises its own kinds of RuntimeError when memory runs out, and importing it here would slow --help.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        return f"out of memory ({cause}): close other programs, or use fewer --bits", ResourceError.exit_code
    kind = type(error).__name__
    return f"{kind}: {cause:.200}: a fault of edge-vla; EDGE_VLA_DEBUG=1 shows where, for a report of it", BUG


def discard_output() -> None:
    """Send what is still to be written nowhere."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
