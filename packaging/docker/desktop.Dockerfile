# A workstation with an NVIDIA GPU, driver 580 or later: torch brings CUDA 13. From the top of the checkout:
#   docker build -f packaging/docker/desktop.Dockerfile -t edge-vla:desktop .
#   docker run --gpus all edge-vla:desktop doctor
FROM python:3.12-slim-bookworm AS wheel
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN EDGE_VLA_LIBRARY=required pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source

FROM python:3.12-slim-bookworm
# A compiler stays: Triton compiles a launcher for each kernel. This image's Python has its own Python.h.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 && rm -rf /var/lib/apt/lists/*
# torch alone and first, with the Triton that it pins.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130
COPY packaging/locks/desktop.txt /tmp/desktop.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/desktop.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --no-deps /tmp/wheel/*.whl && rm -rf /tmp/wheel
ENV OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1001 robot
USER 1001
WORKDIR /home/robot
ENTRYPOINT ["edge-vla"]
CMD ["doctor"]
