"""The model against times worked out by hand, laws that any such model obeys, and constants planted in made-up runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.gpu.counted.__main__ import read_table
from benchmarks.gpu.counted.result import KernelRow
from benchmarks.gpu.model.__main__ import OF_RUN, OUT, RUN, model
from benchmarks.gpu.model.devices import Device
from benchmarks.gpu.model.fit import Measured, Timed, alone, launch_us
from benchmarks.gpu.model.kernel import Constants, Work, work
from benchmarks.gpu.model.predict import bars
from benchmarks.gpu.model.result import ACTION, Expected
from benchmarks.gpu.model.stages import STEP, VISION, stages
from benchmarks.gpu.result import read
from benchmarks.result_files import read_result

# 132 SMs at 1 GHz that copy a megabyte in a microsecond; a megaproduct an SM and microsecond in bf16.
DEVICE = Device("toy", "H200", 1e9, 1e12, 132e12, 264e12, "made up")
GEMM = KernelRow(
    chip="H200", case="qkv 256x1024, 128 rows", kernel="w4a16_gemm", programs=264, passes=1, warps=8,
    programs_per_sm=1, registers=200, stack_bytes=0, shared_bytes=100_000, instructions=1500, loop=500,
    loop_products=16, loop_loads=8, loop_wide_loads=8, per_weight=500 * 8 * 32 / (8 * 128), moved_bytes=3_000_000,
    operations=2 * 128 * 264 * 8 * 256,
)  # fmt: skip


def test_a_gemm_worked_out_by_hand() -> None:
    """264 programs of 8 outputs by 256 inputs, 128 inputs a turn: two turns, 1 000 + 2 x 500 instructions.

    Two programs an SM, one after the other; two warps a scheduler. Alone, a program waits four cycles for each
    instruction and half a microsecond for its products: 2 x 128 x 8 x 256 of a million.
    """
    found = work(GEMM, 128, DEVICE)
    assert found.bytes_us == pytest.approx(3.0)
    assert found.issue_us == pytest.approx(2 * 2 * 2000 * 1e-3)
    assert found.products_us == pytest.approx(2 * 0.524288)
    assert found.chain_us == pytest.approx(2 * (4 * 2000 * 1e-3 + 0.524288))
    assert found.us(0.25) == pytest.approx(found.chain_us + 0.25 * 3.0)
    assert found.roofline_us() == pytest.approx(8.0)


def test_int8_rows_multiply_at_the_rate_of_int8() -> None:
    assert work(replace(GEMM, kernel="w4a8_gemm"), 128, DEVICE).products_us == pytest.approx(0.524288)


@pytest.mark.parametrize(
    ("field", "more"),
    [("moved_bytes", 90_000_000), ("instructions", 4000), ("programs", 528), ("operations", GEMM.operations * 4)],
)
def test_more_of_anything_is_never_cheaper(field: str, more: int) -> None:
    values: dict[str, Any] = {field: more}
    if field == "programs":  # each as long as before
        values |= {"operations": GEMM.operations * 2}
    assert work(replace(GEMM, **values), 128, DEVICE).us(0.2) > work(GEMM, 128, DEVICE).us(0.2)


def test_more_resident_programs_and_a_faster_device_are_never_dearer() -> None:
    plain = work(GEMM, 128, DEVICE).us(0.2)
    assert work(replace(GEMM, programs_per_sm=2), 128, DEVICE).us(0.2) < plain
    for changed in (replace(DEVICE, clock=2e9), replace(DEVICE, copy_bytes_per_s=2e12), replace(DEVICE, bf16=264e12)):
        assert work(GEMM, 128, changed).us(0.2) < plain


def test_more_launches_are_never_cheaper() -> None:
    table = read_table(OF_RUN)
    doubled = [replace(row, kernels={name: 2 * calls for name, calls in row.kernels.items()}) for row in table.launches]
    dearer = stages(replace(table, launches=doubled), "H200")
    for plain, twice in zip(stages(table, "H200"), dearer, strict=True):
        for launch in (1.0, 3.0):
            assert twice.ms(DEVICE, Constants(launch, 0.2)) > plain.ms(DEVICE, Constants(launch, 0.2))
        assert plain.ms(DEVICE, Constants(3.0, 0.2)) > plain.ms(DEVICE, Constants(1.0, 0.2))


def test_a_fit_finds_what_was_planted() -> None:
    works = [Work(b, i, 0.0, c) for b, i, c in ((1.0, 0.2, 0.5), (9.0, 4.0, 2.0), (3.0, 1.0, 30.0), (0.1, 0.1, 0.2))]
    planted = [Timed(str(n), "k", 4.2 + one.us(0.35), one) for n, one in enumerate(works)]
    assert alone(planted) == pytest.approx((4.2, 0.35))
    found = list(stages(read_table(OF_RUN), "H200"))
    measured = [Measured(one, one.ms(DEVICE, Constants(2.7, 0.35))) for one in found]
    assert launch_us(measured, DEVICE, 0.35) == pytest.approx(2.7, abs=0.011)


def test_a_stage_has_the_launches_and_the_weights_of_the_policy() -> None:
    """A step reads each of the decoder's weights once: bytes against its 6.5e9 weights of half a byte and a scale."""
    table = read_table(OF_RUN)
    step = next(one for one in stages(table, "H200") if one.name == STEP and one.configuration.startswith("int4"))
    moved = sum(one.times * one.row.moved_bytes for one in step.beside[0].kernels if one.row.kernel == "w4a16_gemv")
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert moved == pytest.approx(weights * (0.5 + 2 / 128), rel=0.01)
    vision = next(one for one in stages(table, "H200") if one.name == VISION)
    assert len(vision.beside) == 2
    products = [sum(one.times for one in chain.kernels if one.rows) for chain in (*vision.beside, vision.after)]
    assert products == [4 * 23, 4 * 26, 3]


def test_a_kernel_without_a_row_counts_as_its_launches() -> None:
    table = read_table(OF_RUN)
    without = replace(table, kernels=[row for row in table.kernels if row.kernel != "pass_attention"])
    step = next(one for one in stages(without, "H200") if one.name == STEP)
    whole = next(one for one in stages(table, "H200") if one.name == STEP)
    assert step.unpriced == ("pass_attention",)
    assert whole.unpriced == ()
    assert step.beside[0].launches == whole.beside[0].launches


@pytest.mark.parametrize(("lowest", "highest", "verdict"), [(10, 14.9, "met"), (14, 16, "open"), (15.1, 20, "missed")])
def test_a_bar_inside_the_range_is_open(lowest: float, highest: float, verdict: str) -> None:
    named = [("H200", "int4, w4a8 prefill"), ("AGX Orin", "int4, w4a16 prefill"), ("AGX Orin", "int4, w4a8 prefill")]
    found = [Expected(device, configuration, ACTION, lowest, lowest, highest) for device, configuration in named]
    assert next(iter(bars(found))).verdict == verdict


def test_the_committed_model_is_of_the_committed_table() -> None:
    """Whoever makes the table again makes the model again: python -m benchmarks.gpu.model."""
    made = read_result(OUT).body
    assert made == model(read_table(), read_table(OF_RUN), read(RUN), RUN.name)
