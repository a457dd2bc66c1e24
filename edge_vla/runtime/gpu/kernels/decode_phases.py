"""All layers of a pass of few rows in one launch: each phase is a stand-alone kernel's work, shared by all programs.

Phases of a layer, in order: norm, qkv, attention, o_proj, norm, gate_up, SwiGLU, down_proj; the last phase of all is
the final norm. Between two lies a barrier among the programs; with one row there is none before a layer's norms, which
the last program to end the product in front does. Who waits behind a product asks for weights of the next. A launch
does the phases `first` .. `last`: where programs run one after another, each phase is a launch of its own.
"""

from __future__ import annotations

from edge_vla.runtime.gpu.kernels.activations import swiglu_chunk
from edge_vla.runtime.gpu.kernels.grid import arrive, come, is_last, open_barrier, wait_for_all, wait_for_opening
from edge_vla.runtime.gpu.kernels.language import called, jit, tl
from edge_vla.runtime.gpu.kernels.pass_attention import attend_part
from edge_vla.runtime.gpu.kernels.rms_norm import norm_row
from edge_vla.runtime.gpu.kernels.w4a16 import w4a16_part
from edge_vla.runtime.gpu.kernels.w8 import w8a16_part
from edge_vla.runtime.gpu.kernels.w16 import w16_part

PHASES = 8  # of a layer
TASKS = 2  # of a layer: its norms, which with one row are no phases between barriers, but a task of the last program
POINTERS = 10  # of a layer: codes and scales of four products, then two norms; the final norm is where a layer's first
# Of a product's constants, in order: "w4a16", "w8a16" or "w16"; N and K; inputs that share a scale, in the weight and
# in a block; a program's outputs, a block's inputs, splits of K.


# fmt: off
@jit
def _decode_pass(
    x: tl.tensor, stream: tl.tensor, normed: tl.tensor, mixed: tl.tensor, gated: tl.tensor, parts: tl.tensor,
    table: tl.tensor, cos: tl.tensor, sin: tl.tensor, start: tl.tensor, keys: tl.tensor, values: tl.tensor,
    sums: tl.tensor, tickets: tl.tensor, barrier: tl.tensor, rows: tl.tensor, first: tl.tensor, last: tl.tensor,
    layer_stride: tl.tensor, head_stride: tl.tensor, eps: tl.tensor, scale: tl.tensor, qkv_blocks: tl.tensor,
    o_blocks: tl.tensor, up_blocks: tl.tensor, down_blocks: tl.tensor,
    QKV: tl.constexpr, O_PROJ: tl.constexpr, GATE_UP: tl.constexpr, DOWN: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, HALF: tl.constexpr, SLOTS: tl.constexpr,
    ATTENTION_SPLITS: tl.constexpr, WIDTH: tl.constexpr, NORM_BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, PHASES: tl.constexpr, POINTERS: tl.constexpr, MAGIC: tl.constexpr, OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr, WIDENING: tl.constexpr, PROGRAMS: tl.constexpr, TOGETHER: tl.constexpr, POLLS: tl.constexpr,
    OPEN: tl.constexpr,
) -> None:
    """TOGETHER: all programs are resident. `barrier`: a counter, and 1 if one gave up: then hidden rows are NaN."""
    me = tl.program_id(0)
    for phase in range(first, last):
        layer, step = phase // PHASES, phase % PHASES
        place = layer * POINTERS
        # The final norm is a phase for any number of rows: what spoils its row must come after it.
        alone = TOGETHER and (rows == 1)
        done = alone & (phase > 0) & (phase + 1 < last)
        if phase == 0:
            _norms(x, stream, normed, parts, table, place + 8, me, rows, eps, False, 1, WIDTH, NORM_BLOCK)
        elif (step == 0) & (not done):
            _norms(stream, stream, normed, parts, table, place + 8, me, rows, eps, True, DOWN[7], WIDTH, NORM_BLOCK)
        if step == 1:
            _product(normed, table, place, parts, rows, qkv_blocks, QKV, ROWS, MAGIC, OFFSET, ASSEMBLY, WIDENING)
        if step == 2:
            _attention(
                parts, cos, sin, start, keys, values, layer, layer_stride,
                sums, tickets, mixed, rows, head_stride, scale,
                QKV[7], HEADS, KV_HEADS, HEAD_WIDTH, HALF, SLOTS, ATTENTION_SPLITS, ROWS,
            )  # fmt: skip
        if step == 3:
            _product(mixed, table, place + 2, parts, rows, o_blocks, O_PROJ, ROWS, MAGIC, OFFSET, ASSEMBLY, WIDENING)
        before = tl.where(layer == 0, x, stream)
        if (step == 4) & (not done):
            _norms(before, stream, normed, parts, table, place + 9, me, rows, eps, True, O_PROJ[7], WIDTH, NORM_BLOCK)
        if step == 5:
            _product(normed, table, place + 4, parts, rows, up_blocks, GATE_UP, ROWS, MAGIC, OFFSET, ASSEMBLY, WIDENING)
        if step == 6:
            _gates(parts, gated, rows, GATE_UP[7], GATE_UP[1] // 2, CHUNK)
        if step == 7:
            _product(gated, table, place + 6, parts, rows, down_blocks, DOWN, ROWS, MAGIC, OFFSET, ASSEMBLY, WIDENING)
        if TOGETHER:  # noqa: SIM102  decided when this is compiled, the others as it runs
            if (phase + 1 < last) & (not (done & (step % 4 == 0))):
                _between(
                    before, stream, normed, parts, table, place, step, phase + 2 < last, rows, eps, barrier,
                    qkv_blocks, o_blocks, up_blocks, down_blocks, QKV, O_PROJ, GATE_UP, DOWN,
                    WIDTH, NORM_BLOCK, POINTERS, PROGRAMS, POLLS, OPEN,
                )  # fmt: skip
    if TOGETHER:
        _spoil(barrier, normed, rows, WIDTH, ROWS)
# fmt: on


# fmt: off
@jit
def _between(
    before: tl.tensor, stream: tl.tensor, normed: tl.tensor, parts: tl.tensor, table: tl.tensor, place: tl.tensor,
    step: tl.tensor, more: tl.tensor, rows: tl.tensor, eps: tl.tensor, barrier: tl.tensor, qkv_blocks: tl.tensor,
    o_blocks: tl.tensor, up_blocks: tl.tensor, down_blocks: tl.tensor,
    QKV: tl.constexpr, O_PROJ: tl.constexpr, GATE_UP: tl.constexpr, DOWN: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, POINTERS: tl.constexpr, PROGRAMS: tl.constexpr, POLLS: tl.constexpr, OPEN: tl.constexpr,
) -> None:
    """A barrier. With one row the last program in a product does the norm behind it, if `more` than that follows."""
    if (rows == 1) & (step % 4 == 3) & more:
        count = arrive(barrier)
        if is_last(count, PROGRAMS):
            first = tl.cast(0, tl.int32)  # a constant would make another function of the norm
            if step == 3:
                _norms(before, stream, normed, parts, table, place + 9, first, rows, eps, True, O_PROJ[7], WIDTH, BLOCK)
            else:
                gain = place + POINTERS + 8
                _norms(stream, stream, normed, parts, table, gain, first, rows, eps, True, DOWN[7], WIDTH, BLOCK)
            open_barrier(barrier)
        else:
            _ask(
                table, place, step, more, qkv_blocks, o_blocks, up_blocks, down_blocks,
                QKV, O_PROJ, GATE_UP, DOWN, POINTERS,
            )
            wait_for_opening(barrier, count, PROGRAMS, POLLS, OPEN)
    else:
        count, own = come(barrier)
        _ask(
            table, place, step, more, qkv_blocks, o_blocks, up_blocks, down_blocks,
            QKV, O_PROJ, GATE_UP, DOWN, POINTERS,
        )
        wait_for_all(barrier, count, own, PROGRAMS, POLLS, OPEN)
# fmt: on


@jit
def _spoil(barrier: tl.tensor, normed: tl.tensor, rows: tl.tensor, WIDTH: tl.constexpr, ROWS: tl.constexpr) -> None:
    """No number may come of a pass whose programs did not wait for each other.

    Every program spoils all rows: one that comes late may still do a norm for all when others have ended.
    """
    if tl.load(barrier + 1) != 0:
        tl.debug_barrier()  # after what other threads have written there
        row = tl.arange(0, ROWS)
        tl.store(normed + row * WIDTH, float("nan"), mask=row < rows)


@called
def _norms(
    before: tl.tensor,
    stream: tl.tensor,
    normed: tl.tensor,
    parts: tl.tensor,
    table: tl.tensor,
    place: tl.tensor,
    first: tl.tensor,
    rows: tl.tensor,
    eps: tl.tensor,
    ADDED: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Rows from `first` on of the stream, which was `before`, plus what is ADDED, and their norms by the table."""
    gain = _pointer(table + place, before.dtype.element_ty)
    for row in range(first, rows, tl.num_programs(0)):
        norm_row(
            before, parts, gain, stream, normed, normed, eps, row, rows,
            ADDED, PARTS, WIDTH, WIDTH, False, False, BLOCK, False,
        )  # fmt: skip


@called
def _attention(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    start: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    layer: tl.tensor,
    layer_stride: tl.tensor,
    sums: tl.tensor,
    tickets: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    head_stride: tl.tensor,
    scale: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """`pass_attention`, its programs in the order of a launch."""
    keys += layer * layer_stride
    values += layer * layer_stride
    for item in range(tl.program_id(0), HEADS * SPLITS, tl.num_programs(0)):
        attend_part(
            qkv, cos, sin, start, keys, values, sums, tickets, out, item % HEADS, item // HEADS,
            rows, head_stride, head_stride, scale,
            PARTS, HEADS, KV_HEADS, WIDTH, HALF, SLOTS, SPLITS, ROWS, False,
        )  # fmt: skip


@called
def _gates(
    gate_up: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """SwiGLU; a row's chunk is one program's."""
    CHUNKS: tl.constexpr = (WIDTH + CHUNK - 1) // CHUNK
    for item in range(tl.program_id(0), rows * CHUNKS, tl.num_programs(0)):
        swiglu_chunk(
            gate_up, out, out, item // CHUNKS, item % CHUNKS, rows,
            out.dtype.element_ty, PARTS, WIDTH, WIDTH, False, False, CHUNK, False,
        )  # fmt: skip


@called
def _product(
    x: tl.tensor,
    table: tl.tensor,
    place: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    blocks_each: tl.tensor,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    MAGIC: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    WIDENING: tl.constexpr,
) -> None:
    """A gemv of the weight whose codes and scales `at` points to; its programs in the order of a launch."""
    TYPE: tl.constexpr = x.dtype.element_ty
    KIND: tl.constexpr = SHAPE[0]
    N: tl.constexpr = SHAPE[1]
    K: tl.constexpr = SHAPE[2]
    BLOCK_N: tl.constexpr = SHAPE[5]
    BLOCK_K: tl.constexpr = SHAPE[6]
    SPLITS: tl.constexpr = SHAPE[7]
    COLUMNS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    EVEN_N: tl.constexpr = N % BLOCK_N == 0
    EVEN_K: tl.constexpr = K % BLOCK_K == 0
    for item in range(tl.program_id(0), COLUMNS * SPLITS, tl.num_programs(0)):
        column, split = item % COLUMNS, item // COLUMNS
        if KIND == "w4a16":
            w4a16_part(
                x, _pointer(table + place, tl.int32), _pointer(table + place + 1, tl.float16), out, column, split,
                rows, N, K, BLOCKS, blocks_each,
                SHAPE[3], SHAPE[4], EVEN_N, EVEN_K, ROWS, BLOCK_N, BLOCK_K, 32, 16, MAGIC, OFFSET, ASSEMBLY, False,
            )  # fmt: skip
        elif KIND == "w8a16":
            w8a16_part(
                x, _pointer(table + place, tl.int8), _pointer(table + place + 1, tl.float16), out, column, split,
                rows, N, K, BLOCKS, blocks_each, EVEN_K, ROWS, BLOCK_N, BLOCK_K, WIDENING, False,
            )  # fmt: skip
        else:
            w16_part(
                x, _pointer(table + place, TYPE), out, column, split,
                rows, N, K, BLOCKS, blocks_each, EVEN_K, ROWS, BLOCK_N, BLOCK_K, False,
            )  # fmt: skip


@called
def _ask(
    table: tl.tensor,
    place: tl.tensor,
    step: tl.tensor,
    more: tl.tensor,
    qkv_blocks: tl.tensor,
    o_blocks: tl.tensor,
    up_blocks: tl.tensor,
    down_blocks: tl.tensor,
    QKV: tl.constexpr,
    O_PROJ: tl.constexpr,
    GATE_UP: tl.constexpr,
    DOWN: tl.constexpr,
    POINTERS: tl.constexpr,
) -> None:
    """At the end of a product, asks for weights of the next, if there is one."""
    if step == 1:
        _ask_for(table, place + 2, o_blocks, O_PROJ)
    if step == 3:
        _ask_for(table, place + 4, up_blocks, GATE_UP)
    if step == 5:
        _ask_for(table, place + 6, down_blocks, DOWN)
    if (step == 7) & more:
        _ask_for(table, place + POINTERS, qkv_blocks, QKV)


@jit
def _ask_for(table: tl.tensor, place: tl.tensor, blocks_each: tl.tensor, SHAPE: tl.constexpr) -> None:
    """Asks memory for the first weights that this program will read of a product, to the L2: nothing waits for them.

    128 bytes an output: two microseconds of an H200's memory, about as long as a barrier would leave it idle.
    """
    N: tl.constexpr = SHAPE[1]
    BLOCK_N: tl.constexpr = SHAPE[5]
    INT4: tl.constexpr = SHAPE[0] == "w4a16"
    BYTES: tl.constexpr = SHAPE[6] // 2 if INT4 else SHAPE[6] if SHAPE[0] == "w8a16" else 2 * SHAPE[6]  # in a block
    ROW: tl.constexpr = SHAPE[2] * BYTES // SHAPE[6]
    BLOCKS: tl.constexpr = (SHAPE[2] + SHAPE[6] - 1) // SHAPE[6]
    COLUMNS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    item = tl.program_id(0)
    if item < COLUMNS * SHAPE[7]:
        output = tl.minimum(item % COLUMNS * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
        first = item // COLUMNS * blocks_each
        for line in tl.static_range(2):
            if INT4:  # a line of 64 bytes in each of two blocks
                at = (tl.minimum(first + line, BLOCKS - 1).to(tl.int64) * N + output) * BYTES
            else:
                at = output * ROW + tl.minimum(first * BYTES + 64 * line, ROW - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
                "=r,l", [tl.load(table + place) + at], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@jit
def _pointer(at: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """The address in the table, which is aligned as every allocation is."""
    return tl.multiple_of(tl.load(at).to(tl.pointer_type(TYPE)), 16)
