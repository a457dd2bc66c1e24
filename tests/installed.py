"""A program for the interpreter that a wheel was installed in: the C engine runs there without a compiler.

    ENVIRONMENT/bin/python tests/installed.py

Exports a tiny policy, has its golden frames replayed by the C engine, and again by the slow reference, which shares no
product with it; then looks whether anything was compiled. Prints what ran; ends with 1 and a reason where it does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, shutil, edge_vla
from edge_vla.runtime.cpu.native import library, targets
compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
target, libraries = library.chosen(), sorted(path.name for path in targets.INSTALLED.glob("*.so"))
print(json.dumps([edge_vla.__file__, compiler, target and target.name, libraries]))
"""


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PATH")}
    with tempfile.TemporaryDirectory() as directory:
        environment |= {"PATH": "", "XDG_CACHE_HOME": f"{directory}/cache", "PYTHONSAFEPATH": "1"}
        asked = [sys.executable, "-c", SCRIPT]
        where, compiler, target, libraries = json.loads(run(asked, environment, directory))
        require(not Path(where).is_relative_to(HERE), f"{where} is the checkout, not the installed package")
        require(compiler is None, f"{compiler} is on the path")
        require(bool(libraries), "no library was installed")
        require(target is not None, f"none of {libraries} is chosen here")
        command = [sys.executable, "-m", "edge_vla.cli"]
        artifact = f"{directory}/artifact"
        run([*command, "export", "random:openvla-tiny", "--bits", "4", "--out", artifact], environment, directory)
        for kernel in ("native", f"native@{target}", "reference"):
            run([*command, "verify", artifact, "--device", "cpu", "--kernel", kernel], environment, directory)
        compiled = sorted(path.name for path in Path(directory, "cache").rglob("*.so"))
        require(not compiled, f"{compiled} were compiled")
    sys.stdout.write(f"{target} of {libraries}: golden frames give their tokens, nothing was compiled\n")


def run(command: list[str], environment: dict[str, str], directory: str) -> str:
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(otherwise)


if __name__ == "__main__":
    main()
