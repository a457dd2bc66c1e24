# Jetson Orin or Thor with JetPack 7.2: Ubuntu 24.04, Python 3.12, a driver for CUDA 13. Built on the Jetson:
#   docker build -f packaging/docker/jetpack-7.Dockerfile -t edge-vla:jetpack-7 .
#   docker run --runtime nvidia edge-vla:jetpack-7 doctor
FROM ubuntu:24.04 AS base
ENV DEBIAN_FRONTEND=noninteractive
# gcc and Python.h: Triton compiles a launcher for each kernel.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc libc6-dev libgomp1 python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/edge-vla
ENV PATH=/opt/edge-vla/bin:$PATH

FROM base AS wheel
COPY . /source
RUN EDGE_VLA_LIBRARY=required pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source

FROM base
# torch alone and first, with the CUDA and the Triton that it pins.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "torch>=2.11" --index-url https://download.pytorch.org/whl/cu130
COPY packaging/locks/jetson7.txt /tmp/jetson7.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/jetson7.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --no-deps /tmp/wheel/*.whl && rm -rf /tmp/wheel
ENV OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1001 --groups video robot
USER 1001
WORKDIR /home/robot
ENTRYPOINT ["edge-vla"]
CMD ["doctor"]
