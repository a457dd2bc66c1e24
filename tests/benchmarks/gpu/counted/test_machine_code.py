"""Loops read out of a disassembly, in the form that nvdisasm prints."""

from __future__ import annotations

from benchmarks.gpu.counted.machine_code import MachineCode, parse

LISTING = """
\t.section\t.text._kernel,"ax",@progbits
_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P6 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64] ;
.L_x_2:
        /*0030*/                   LDG.E.U16 R7, desc[UR4][R8.64] ;
        /*0040*/                   HMMA.16816.F32.BF16 R12, R8, R10, R12 ;
        /*0050*/              @UP1 BRA.U `(.L_x_2) ;
        /*0060*/                   STL [R1], R3 ;
        /*0070*/               @P5 BRA `(.L_x_1) ;
.L_x_0:
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3);
""".splitlines()


def test_the_innermost_loop_that_multiplies() -> None:
    code = MachineCode(32, 0, parse(LISTING))
    assert len(code.instructions) == 10
    loop = code.loop()
    assert [one.operation for one in loop] == ["LDG", "HMMA", "BRA"]
    assert sum(one.multiplies for one in loop) == 1
    assert [one.loads_wide for one in loop] == [False, False, False]


def test_without_a_product_the_longest_loop() -> None:
    plain = [line for line in LISTING if "HMMA" not in line]
    loop = MachineCode(32, 0, parse(plain)).loop()
    assert [one.operation for one in loop] == ["LDGSTS", "LDG", "BRA", "STL", "BRA"]
    assert loop[0].loads_wide


def test_a_jump_forward_or_to_itself_is_no_loop() -> None:
    straight = [line for line in LISTING if "L_x_1" not in line and "L_x_2" not in line]
    assert MachineCode(32, 0, parse(straight)).loop() == ()


def test_a_jump_back_over_two_loops_is_no_inner_loop() -> None:
    """As a B200's wait for its tensor memory has it, behind the loops of both kinds of row tiles."""
    again = [line.replace("L_x_2", "L_x_5") for line in LISTING[7:11]]
    lines = [*LISTING[:11], *again, "        /*0068*/                   @P4 BRA `(.L_x_1) ;", *LISTING[13:]]
    loop = MachineCode(32, 0, parse(lines)).loop()
    assert [one.operation for one in loop] == ["LDG", "HMMA", "BRA"]
