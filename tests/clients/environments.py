"""An environment per client, built once under a folder of its own; nothing is installed into this project's."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INSTALL_S: Final = 300
OPENPI: Final = ("openpi-client==0.1.2", "typing-extensions")


@dataclass(frozen=True)
class Client:
    """`needs_source` names a folder of upstream files that no package index has: (setting, what to put there)."""

    name: str
    script: str
    requirements: tuple[str, ...]
    needs_source: tuple[str, str] | None = None


CLIENTS: Final = (
    *(
        Client(f"rest-json-numpy-{version}", "rest.py", ("requests", f"json-numpy=={version}"))
        for version in ("1.0.1", "2.0.0", "2.1.1")
    ),
    *(  # which forgets typing-extensions, and takes the websockets that its robot has
        Client(f"openpi-client-0.1.2, websockets {version}", "openpi.py", (*OPENPI, f"websockets=={version}"))
        for version in ("11.0.3", "15.0.1", "17.4")
    ),
    Client(
        "openpi-simple-client",
        "openpi_simple.py",
        (*OPENPI, "polars==1.30.0", "rich==14.0.0", "tqdm==4.67.1", "tyro==0.9.22"),  # as its requirements.txt
        ("openpi_simple", "main.py of Physical-Intelligence/openpi's examples/simple_client (15a9616)"),
    ),
    Client("vla-eval", "vla_eval_client.py", ("vla-eval>=0.8",)),
    Client(
        "gr00t-n1.5",
        "gr00t_n15.py",
        ("pyzmq", "msgpack", "numpy", "pydantic"),
        ("gr00t_n15", "service.py of NVIDIA/Isaac-GR00T's gr00t/eval at N1.5 (0a015f6)"),
    ),
    Client(
        "gr00t-n1.6",
        "gr00t_n16.py",
        ("pyzmq", "msgpack", "numpy"),
        ("gr00t_n16", "gr00t/policy/ and gr00t/data/ of NVIDIA/Isaac-GR00T at N1.6 or N1.7 (38624df)"),
    ),
)


class SkippedError(Exception):
    """This client cannot be had here; the message says what is missing."""


def python_of(client: Client, folder: Path) -> Path:
    """The client's own interpreter. Raises SkippedError where its packages cannot be installed."""
    root = folder / client.name.replace(", ", "-").replace(" ", "-")
    python = root / "bin" / "python"
    if (root / "ready").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(root)], check=True, capture_output=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *client.requirements],
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
        raise SkippedError(f"{' '.join(client.requirements)}: {why}")
    (root / "ready").touch()
    return python
