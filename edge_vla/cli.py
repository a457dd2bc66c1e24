"""The command line: `edge-vla COMMAND`. With `commands/` and `terminal.py` the only place that prints.

Results go to standard output, everything else to standard error. Exit codes are those of `edge_vla.errors`; 130 after
Ctrl-C. Knows commands and errors; a package is imported when its command runs.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from edge_vla.commands.act import act
from edge_vla.commands.bench import bench, compare
from edge_vla.commands.demo import demo
from edge_vla.commands.doctor import doctor
from edge_vla.commands.export import export
from edge_vla.commands.inspect import inspect, verify
from edge_vla.commands.plan import plan
from edge_vla.commands.ros2 import ros2
from edge_vla.commands.run import run
from edge_vla.commands.serve import serve
from edge_vla.errors import EdgeVLAError, ResourceError
from edge_vla.options import modernise
from edge_vla.terminal import out, say, show_warning
from edge_vla.version import __version__

app = typer.Typer(
    help="Put OpenVLA on a robot: merge adapters, quantise, export, run, and prove that it is still the same policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (export, run, act, serve, bench, compare, plan, doctor, verify, inspect, demo):
    app.command()(command)
app.command(context_settings={"ignore_unknown_options": True})(ros2)  # most are ROS's


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: turns typed errors into one line and an exit code."""
    debug = bool(os.environ.get("EDGE_VLA_DEBUG"))
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("edge_vla").setLevel(logging.DEBUG if debug else logging.WARNING)
    warnings.showwarning = show_warning
    current, notices = modernise(sys.argv[1:] if arguments is None else arguments)
    for notice in notices:
        say("deprecated", "yellow", notice)
    call: Callable[..., Any] = app
    try:
        call(args=current)
    except (EdgeVLAError, OSError, MemoryError, RuntimeError) as error:
        found = explained(error)
        if debug or found is None:
            raise
        message, code = found
        say("error", "red", message)
        raise SystemExit(code) from None


def explained(error: Exception) -> tuple[str, int] | None:
    """What to print for an error that a user can cause, and its exit code; None for one of ours."""
    if isinstance(error, EdgeVLAError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        if error.filename is None:
            return None
        reason = f"{error.filename}: {error.strerror}: check that it exists and that you may read it"
        return reason, ResourceError.exit_code
    # torch raises its own kinds of RuntimeError when memory runs out, and importing it here would slow --help.
    if not isinstance(error, MemoryError) and "memory" not in str(error):
        return None
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"out of memory ({cause}): close other programs, or use fewer --bits", ResourceError.exit_code


if __name__ == "__main__":
    main()
