"""Where these tests' kernels run: on the GPU if there is one, else in Triton's interpreter, if there is a Triton."""

from __future__ import annotations

import importlib.util
import os

import torch

from tests.runtime.gpu.kernels.interpreter import mend

HAVE_TRITON = importlib.util.find_spec("triton") is not None
HAVE_GPU = torch.cuda.is_available()

if HAVE_TRITON and not HAVE_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is made: `jit` looks then
    mend()
