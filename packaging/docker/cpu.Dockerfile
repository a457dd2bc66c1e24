# A workstation or server without a GPU: export, run, serve. Built from the top of the checkout:
#   docker build -f packaging/docker/cpu.Dockerfile -t edge-vla:cpu .
FROM python:3.12-slim-bookworm AS wheel
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /source
# With a compiler here, the wheel holds the C engine for every x86 it knows, and no robot compiles.
RUN EDGE_VLA_LIBRARY=required pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# torch alone and first: another index, the largest layer, and nothing later may replace it.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY packaging/locks/cpu.txt /tmp/cpu.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/cpu.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --no-deps /tmp/wheel/*.whl && rm -rf /tmp/wheel
ENV OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1001 robot
USER 1001
WORKDIR /home/robot
ENTRYPOINT ["edge-vla"]
CMD ["doctor"]
