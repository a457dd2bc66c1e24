"""What C is compiled for: never more than the processor has; what is missing is said with a remedy."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edge_vla.errors import BackendError, UsageError
from edge_vla.processor import ARM, X86, features, hwcap_features, listed_features, machine
from edge_vla.quant import PackedWeight, Scheme, quantise
from edge_vla.runtime import compiled
from edge_vla.runtime.cpu.assemble import Assembly
from edge_vla.runtime.cpu.native import library, targets
from edge_vla.runtime.cpu.native.targets import SCALAR, TARGETS, Target, named, runnable
from edge_vla.spec import TINY
from tests.runtime.cpu.compilers import gcc_for

NEEDS_COMPILER = pytest.mark.skipif(compiled.compiler() is None, reason="no C compiler here")
HASWELL = "fpu sse2 ssse3 sse4_1 sse4_2 fma movbe popcnt f16c abm bmi1 avx2 bmi2"
ICE_LAKE = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"
COOPER_LAKE = f"{ICE_LAKE} avx512_bf16"
ALDER_LAKE = f"{HASWELL} avx_vnni"
SAPPHIRE_RAPIDS = f"{COOPER_LAKE} avx_vnni amx_bf16 amx_tile amx_int8"
ORIN = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRACE = f"{ORIN} sve sve2 i8mm bf16"
RASPBERRY_PI_4 = "fp asimd evtstrm crc32 cpuid"


def processor(monkeypatch: pytest.MonkeyPatch, of: str, features: str) -> None:
    """This machine becomes another, with C for every target."""
    monkeypatch.setattr(targets, "machine", lambda: of)
    monkeypatch.setattr(targets, "features", lambda: frozenset(features.split()))
    monkeypatch.setattr(targets, "WRITTEN", frozenset(target.name for target in TARGETS))


@pytest.fixture(autouse=True)
def _look_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(targets.VARIABLE, raising=False)
    library.forget()
    yield
    library.forget()


@pytest.mark.parametrize(
    ("of", "features", "best"),
    [
        (X86, SAPPHIRE_RAPIDS, "amx"),
        (X86, COOPER_LAKE, "avx512-vnni"),
        (X86, ICE_LAKE, "avx512-vnni"),
        (X86, ICE_LAKE.replace("avx512_vnni", ""), "avx512"),
        (X86, ALDER_LAKE, "avx2-vnni"),
        (X86, HASWELL, "avx2"),
        (X86, HASWELL.replace("fma", ""), "scalar"),
        (X86, "fpu sse2", "scalar"),
        (X86, "", "scalar"),
        (ARM, GRACE, "neon-bf16"),
        (ARM, GRACE.replace("bf16", ""), "neon-i8mm"),
        (ARM, ORIN, "neon-dotprod"),
        (ARM, RASPBERRY_PI_4, "neon"),
        ("riscv64", "", "scalar"),
    ],
)
def test_the_best_target_is_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, of: str, features: str, best: str
) -> None:
    processor(monkeypatch, of, features)
    assert runnable()[0].name == best
    assert runnable()[-1] == SCALAR


def test_only_what_c_has_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, X86, SAPPHIRE_RAPIDS)
    monkeypatch.setattr(targets, "WRITTEN", frozenset({"avx2", "scalar"}))
    assert [target.name for target in runnable()] == ["avx2", "scalar"]
    with pytest.raises(BackendError, match="not written"):
        named("amx")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_flags_allow_what_the_name_says_and_no_more(target: Target) -> None:
    """By the compiler's own macros: a library for AVX2 must hold no AVX-512, or a laptop stops at it."""
    compiler = gcc_for(target)
    if compiler is None:
        pytest.skip(f"no gcc for {target.machine or X86} here")
    command = [compiler, "-dM", "-E", *target.flags, "-x", "c", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    macros = {line.split()[1] for line in said.splitlines()}
    meant = {
        "__AVX2__": "avx2", "__AVX512F__": "avx512f", "__AVX512VNNI__": "avx512_vnni", "__AVXVNNI__": "avx_vnni",
        "__AVX512BF16__": "avx512_bf16", "__AMX_INT8__": "amx_int8", "__FMA__": "fma",
        "__ARM_FEATURE_DOTPROD": "asimddp", "__ARM_FEATURE_MATMUL_INT8": "i8mm",
        "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "bf16",
    }  # fmt: skip
    assert {meant[macro] for macro in macros & meant.keys()} == target.features & set(meant.values())


@pytest.mark.parametrize(
    ("of", "features", "name", "error", "says"),
    [
        (X86, HASWELL, "avx512-vnni", BackendError, "needs avx512_vnni, avx512bw.*lacks: it has avx2, scalar"),
        (X86, HASWELL, "neon", BackendError, "for aarch64, this machine is x86_64: it has avx2, scalar"),
        (ARM, ORIN, "neon-i8mm", BackendError, "needs i8mm.*it has neon-dotprod, neon, scalar"),
        (X86, HASWELL, "avx3", UsageError, "no target 'avx3': this machine has avx2, scalar"),
    ],
)
def test_a_target_that_is_not_there_says_what_is(
    monkeypatch: pytest.MonkeyPatch, of: str, features: str, name: str, error: type[Exception], says: str
) -> None:
    processor(monkeypatch, of, features)
    with pytest.raises(error, match=says):
        named(name)


def test_nothing_is_compiled_for_a_processor_that_cannot_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, X86, "fpu sse2")
    monkeypatch.setattr(library, "compiled", lambda *_: pytest.fail("compiled"))
    assert library.chosen() is None
    assert library.library() is None
    assert not library.fast()
    assert "needs the instructions of one of avx2" in library.why_none()
    with pytest.raises(BackendError, match="lacks: it has scalar"):
        library.wanted("avx2")
    with pytest.raises(UsageError, match="needs the instructions"):
        Assembly(TINY, torch.bfloat16, torch.device("cpu"), formats(), "native")


def formats() -> list[dict[str, PackedWeight]]:
    return [{name: quantise(torch.randn(*shape), Scheme.INT8, None) for name, shape in TINY.decoder.linears().items()}]


def test_the_environment_names_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, X86, ICE_LAKE)
    loaded = list[str]()
    monkeypatch.setattr(library, "compiled", lambda name, *_: Path(name))
    monkeypatch.setattr(library, "opened", lambda _, target: loaded.append(target.name))
    monkeypatch.setenv(targets.VARIABLE, "avx2")
    assert library.chosen() == named("avx2")
    assert loaded == ["avx2"]
    monkeypatch.setenv(targets.VARIABLE, "amx")
    with pytest.raises(BackendError, match="amx needs"):
        library.chosen()


@NEEDS_COMPILER
@pytest.mark.parametrize("kernel", ["native", "native/int8"])
def test_a_kernel_names_its_target(kernel: str) -> None:
    best = library.chosen() or SCALAR
    made = Assembly(TINY, torch.bfloat16, torch.device("cpu"), formats(), f"{kernel}@{best.name}")
    assert (made.native, made.target, made.want) == (True, best, kernel)
    (layer,) = formats()
    norms = {f"{name}_layernorm.weight": torch.ones(TINY.decoder.width) for name in ("input", "post_attention")}
    made.layer(0, layer, norms)
    made.check_kernel()
    assert made.kernels() == {"int8": f"{kernel}@{best.name}"}


def test_only_c_has_targets() -> None:
    with pytest.raises(UsageError, match="only native and native/int8 have targets"):
        Assembly(TINY, torch.bfloat16, torch.device("cpu"), formats(), "torch@avx2")


@NEEDS_COMPILER
def test_a_library_for_another_target_is_refused(tmp_path: Path) -> None:
    file = built(tmp_path, "avx2")
    with pytest.raises(BackendError, match="was built for avx2, not for scalar: remove it"):
        library.opened(file, SCALAR)


@NEEDS_COMPILER
@pytest.mark.skipif(machine() != X86, reason="x86 alone")
def test_a_library_that_needs_more_than_the_processor_has_is_refused(tmp_path: Path) -> None:
    """Its own answer counts, by the processor's cpuid: a table that lies must not lead to an illegal instruction."""
    lacking = [target for target in TARGETS if target.machine == X86 and not target.features <= features()]
    if not lacking:
        pytest.skip("this processor has every target")
    file = built(tmp_path, "scalar", lacking[0].flags)
    with pytest.raises(BackendError, match="needs instructions that this processor lacks"):
        library.opened(file, SCALAR)


@NEEDS_COMPILER
def test_what_runs_here_says_so(tmp_path: Path) -> None:
    best = runnable()[0]
    loaded = ctypes.CDLL(str(built(tmp_path, best.name, best.flags)))
    assert loaded.edge_vla_runs_here() == 1


def built(directory: Path, name: str, flags: tuple[str, ...] = (), fingerprint: str = "") -> Path:
    """target.c alone, with empty functions in place of the engine."""
    empty = "".join(f"void edge_vla_{function}(void) {{}}\n" for function in library.FUNCTIONS)
    (directory / "rest.c").write_text(empty)
    file = directory / f"{name}.so"
    defines = [f'-DTARGET="{name}"', f'-DFINGERPRINT="{fingerprint or targets.fingerprint(named(name))}"']
    words = ["-shared", "-fPIC", *flags, *defines, str(targets.HERE / "target.c")]
    subprocess.run([str(compiled.compiler()), "-o", str(file), *words, str(directory / "rest.c")], check=True)
    return file


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF\x02\x01\x01"], ids=["empty", "text", "cut short"])
def test_a_damaged_library_is_typed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.so").write_bytes(content)
    with pytest.raises(BackendError, match=r"does not load.*remove it"):
        library.opened(tmp_path / "damaged.so", SCALAR)


@NEEDS_COMPILER
@pytest.mark.parametrize("rest", [40, 100, 4096, 12288], ids=lambda rest: f"{rest} bytes")
def test_a_library_that_is_cut_short_is_typed(tmp_path: Path, rest: int) -> None:
    """A full disk at installation. In a process of its own: to load such a file ends it by SIGBUS."""
    file = built(tmp_path, "scalar")
    assert rest < file.stat().st_size
    file.write_bytes(file.read_bytes()[:rest])
    code = "import sys; from edge_vla.runtime.cpu.native import library, targets; from pathlib import Path\n"
    code += "try: library.opened(Path(sys.argv[1]), targets.SCALAR)\nexcept library.BackendError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert f"{file} does not load: " in done.stdout
    assert "cut short" in done.stdout
    assert "remove it" in done.stdout


@NEEDS_COMPILER
def test_a_library_of_other_c_files_is_refused(tmp_path: Path) -> None:
    """Of another edge-vla, under this one's name: its structures may differ, and its symbols need not."""
    with pytest.raises(BackendError, match="was built from other C files: remove it"):
        library.opened(built(tmp_path, "scalar", fingerprint="0123456789abcdef"), SCALAR)


@pytest.mark.parametrize("stored", ["", "avx2"], ids=["nothing installed", "avx2 installed"])
def test_without_a_compiler_it_is_said_once_and_what_is_installed_loads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, stored: str
) -> None:
    processor(monkeypatch, X86, ICE_LAKE)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(library, "_installed", lambda target: tmp_path if target.name == stored else None)
    monkeypatch.setattr(library, "opened", lambda *_: None)
    assert library.chosen() == (named(stored) if stored else None)
    assert caplog.text.count("no C compiler") == 1


@NEEDS_COMPILER
def test_a_library_of_something_else_is_typed(tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text("int f(void) { return 1; }")
    file = tmp_path / "other.so"
    subprocess.run([str(compiled.compiler()), "-shared", "-o", str(file), str(tmp_path / "other.c")], check=True)
    with pytest.raises(BackendError, match=r"does not load.*remove it"):
        library.opened(file, SCALAR)


def test_where_the_best_does_not_load_the_next_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processor(monkeypatch, X86, ICE_LAKE)

    def compile(name: str, *_: object) -> Path:
        if name != "network-avx2":
            raise BackendError("this compiler is too old")
        return Path(name)

    monkeypatch.setattr(library, "_installed", lambda _: None)
    monkeypatch.setattr(library, "compiled", compile)
    monkeypatch.setattr(library, "opened", lambda *_: None)
    assert library.chosen() == named("avx2")
    assert "avx512-vnni is not there: this compiler is too old" in caplog.text


def test_features_are_those_of_every_core() -> None:
    """A chip with big and small cores lists them apart; a file of the host under an emulator has no line of ours."""
    cores = "processor : 0\nFeatures\t: fp asimd asimddp i8mm\n\nprocessor : 1\nFeatures\t: fp asimd asimddp\n"
    assert listed_features(cores, ARM) == {"fp", "asimd", "asimddp"}
    assert listed_features(cores, X86) == frozenset()
    assert listed_features("flags\t\t: fpu avx2\nvmx flags\t: vnmi\n", X86) == {"fpu", "avx2"}


def test_hwcaps_of_known_processors() -> None:
    """Orin's as its kernel prints them (AT_HWCAP 0x119fff), and a server's with i8mm and bf16 in the second value."""
    assert "asimddp" in hwcap_features(0x119FFF, 0)
    assert not {"i8mm", "bf16"} & hwcap_features(0x119FFF, 0)
    assert {"i8mm", "bf16"} <= hwcap_features(0x119FFF, 1 << 13 | 1 << 14)
