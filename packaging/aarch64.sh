#!/bin/bash
# The project on an emulated 64-bit Arm: a Debian root and wheels that are only unpacked, and qemu's user mode. No
# container, no chroot, no binfmt_misc, and no emulated program installs anything.
#
#   packaging/aarch64.sh prepare          once: 1.6 GB of disk under $AARCH64 (Debian or Ubuntu, as root)
#   packaging/aarch64.sh python ARGS...   an emulated Python 3.11 with torch and the run side, on this checkout
#   packaging/aarch64.sh edge-vla ARGS... the command
#   packaging/aarch64.sh test [ARTIFACT...]  the run side's tests, then each artifact's golden frames; on both processors
#
# AARCH64  where it lies (default ~/.cache/edge-vla-aarch64)
# PROJECT  the checkout that runs (default: this one)
# CPU      cortex-a76 (default): the instructions of Orin's Cortex-A78AE, with dotprod and fp16, without i8mm and bf16;
#          or max: with i8mm, bf16, SVE2
# Time is an emulator's: never quote a speed from here.
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
ROOT=${AARCH64:-$HOME/.cache/edge-vla-aarch64}
PROJECT=${PROJECT:-$HERE}
# The last that has a wheel for aarch64 without CUDA where pip looks; later ones need 2.5 GB of CUDA to import.
TORCH=torch==2.10.0
# What the run side and its tests import, in the versions of constraints.txt where it names them.
WITH="numpy safetensors tokenizers pillow typer rich filelock typing_extensions sympy mpmath networkx Jinja2 MarkupSafe
      fsspec click shellingham markdown-it-py mdurl Pygments annotated-doc packaging pytest pytest-timeout pluggy
      iniconfig hypothesis sortedcontainers msgpack websockets"
# What runs there: all that a robot runs, except what needs a package that only development has.
TESTS="tests/runtime/kernels tests/runtime/cpu tests/runtime/test_native.py tests/runtime/test_golden.py
       tests/runtime/test_decode.py tests/runtime/test_policy.py tests/runtime/test_session.py tests/runtime/vision
       tests/openvla tests/quant tests/device tests/robot --ignore tests/openvla/test_statistics.py
       --ignore tests/robot/ros2 --ignore tests/robot/test_act.py"  # real time, which an emulator does not keep

prepare() {
    local program missing=
    for program in mmdebstrap qemu-aarch64-static aarch64-linux-gnu-gcc; do
        command -v "$program" >/dev/null || missing=$program
    done
    if [ "$missing" ]; then
        apt-get update -qq
        apt-get install -y -qq mmdebstrap qemu-user-static gcc-aarch64-linux-gnu
    fi
    mkdir -p "$ROOT/bin" "$ROOT/home"
    # "extract" runs no maintainer's script, so nothing is emulated here.
    [ -e "$ROOT/debian/usr/bin/python3" ] || mmdebstrap --quiet --architectures=arm64 --variant=extract \
        --include=python3,python3-distutils,libgomp1,libstdc++6 bookworm "$ROOT/debian" \
        "$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 -v security)"
    # --no-deps: on x86 pip reads the markers for x86, and brings 5 GB of CUDA.
    # shellcheck disable=SC2086
    python3 -m pip install --quiet --no-deps --upgrade --target "$ROOT/site" --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        --platform manylinux_2_17_aarch64 --python-version 3.11 --implementation cp \
        --constraint <(grep -v '^torch==' "$HERE/constraints.txt") "$TORCH" $WITH
    programs
}

# Programs of this machine in the emulated PATH, at this machine's speed: a compiler, and the Python that Python starts.
programs() {
    cat >"$ROOT/bin/cc" <<'CC'
#!/bin/sh
# The cross compiler, for the processor that qemu is instead of "native".
for word; do
    shift
    case $word in
    -march=native | -mcpu=native) set -- "$@" "-mcpu=${MCPU:-cortex-a78ae}" ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec /usr/bin/aarch64-linux-gnu-gcc "$@"
CC
    cat >"$ROOT/bin/python3" <<PYTHON
#!/bin/sh
# -0: sys.executable is this file, so that a child of Python is emulated as well.
exec qemu-aarch64-static -0 "$ROOT/bin/python3" -cpu "\${CPU:-cortex-a76}" -L "$ROOT/debian" \\
    "$ROOT/debian/usr/bin/python3" "\$@"
PYTHON
    chmod +x "$ROOT/bin/cc" "$ROOT/bin/python3"
    ln -sf cc "$ROOT/bin/gcc"
}

emulated() {
    [ -x "$ROOT/bin/python3" ] || { echo "no emulated Python in $ROOT: $0 prepare" >&2; exit 3; }
    # Found from where this Python seems to lie, its library would be none.
    env PATH="$ROOT/bin:$PATH" HOME="$ROOT/home" PYTHONHOME="$ROOT/debian/usr" PYTHONDONTWRITEBYTECODE=1 \
        PYTHONPATH="$ROOT/site:$PROJECT" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" OMP_WAIT_POLICY=PASSIVE \
        "$ROOT/bin/python3" "$@"
}

# What gcc may use where qemu is $1: Orin's, or all that this project's C knows of.
target() {
    case $1 in cortex-a76) echo cortex-a78ae ;; *) echo neoverse-n1+bf16+i8mm ;; esac
}

tests() {
    cd "$PROJECT"
    for cpu in ${CPU:-cortex-a76 max}; do
        echo "== $cpu"
        export CPU=$cpu MCPU
        MCPU=$(target "$cpu")
        # shellcheck disable=SC2086
        emulated -m pytest -p no:cacheprovider $TESTS
        for artifact; do emulated -m edge_vla.cli verify "$artifact"; done
    done
}

case ${1:-} in
prepare) prepare ;;
python) shift; emulated "$@" ;;
edge-vla) shift; emulated -m edge_vla.cli "$@" ;;
test) shift; tests "$@" ;;
*) sed -n '2,15p' "$0"; exit 2 ;;
esac
