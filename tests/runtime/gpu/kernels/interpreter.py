"""Triton's interpreter (3.7), mended where it computes bfloat16 otherwise than any chip.

It keeps bfloat16 as 16-bit integers: it cuts where hardware rounds to nearest, and adds and multiplies the integers.
Kernels stay free of cases for it, so that what is tested is what a chip compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def widen(bits: Array) -> Array:
    """bfloat16 as uint16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: Array) -> Array:
    """float32 -> bfloat16 as uint16, to nearest, half to even, as hardware does."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def mend() -> None:
    """Patch the interpreter's builder for the rest of this process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, binary, dot = builder.cast_impl, builder.binary_op, builder.create_dot

    def wide(tensor: Any) -> Any:
        return handle(widen(tensor.data), tl.float32) if tensor.dtype.scalar == tl.bfloat16 else tensor

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        source = wide(source)
        if to.scalar == tl.bfloat16:
            return handle(narrow(source.data), tl.bfloat16)
        return source if source.dtype.scalar == to.scalar else cast(self, source, to)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[[Array, Array], Array]) -> Any:
        if left.dtype.scalar != tl.bfloat16:
            return binary(self, left, right, op)
        result = binary(self, wide(left), wide(right), op)
        return handle(narrow(result.data), tl.bfloat16) if result.data.dtype == np.float32 else result

    def create_dot(self: Any, left: Any, right: Any, sums: Any, *arguments: Any) -> Any:
        return dot(self, wide(left), wide(right), sums, *arguments)

    def get_bf16(self: Any, value: float) -> Any:
        return handle(narrow(np.array([value], dtype=np.float32)), tl.bfloat16)

    builder.get_bf16 = get_bf16
    builder.cast_impl, builder.binary_op, builder.create_dot = cast_impl, binary_op, create_dot


@contextmanager
def one_row_at_a_time() -> Iterator[None]:
    """Within, the right operand of a product goes through it column by column, so that no sum depends on another."""
    from triton.runtime import interpreter

    handle, dot = interpreter.TensorHandle, interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, left: Any, right: Any, sums: Any, *arguments: Any) -> Any:
        columns = [
            dot(
                self,
                left,
                handle(np.ascontiguousarray(right.data[:, i : i + 1]), right.dtype),
                handle(np.ascontiguousarray(sums.data[:, i : i + 1]), sums.dtype),
                *arguments,
            )
            for i in range(right.data.shape[1])
        ]
        return handle(np.concatenate([one.data for one in columns], axis=1), columns[0].dtype)

    with patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield
