"""Waiting threads sleep, without the user knowing, and as the user says if he says it."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = (
    "import os, sys, edge_vla.threads as t; print(t.settle(), os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
)


def run(script: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_before_torch_it_is_set() -> None:
    assert run(SCRIPT) == "True PASSIVE False"


def test_the_users_word_stands() -> None:
    assert run(SCRIPT, OMP_WAIT_POLICY="ACTIVE") == "True ACTIVE False"


def test_after_torch_it_says_that_it_is_too_late() -> None:
    late = "import torch, edge_vla.threads as t; print(t.settle())"
    assert run(late) == "False"
    assert run(late, OMP_WAIT_POLICY="passive") == "True"


def test_importing_the_package_settles_it() -> None:
    assert run("import os, edge_vla; print(os.environ['OMP_WAIT_POLICY'])") == "PASSIVE"
