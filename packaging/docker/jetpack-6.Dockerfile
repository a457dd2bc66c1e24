# Jetson Orin with JetPack 6.2: Ubuntu 22.04, Python 3.10, CUDA 12.6, TensorRT 10.3. Built on the Jetson:
#   docker build -f packaging/docker/jetpack-6.Dockerfile -t edge-vla:jetpack-6 .
#   docker run --runtime nvidia edge-vla:jetpack-6 doctor
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0 AS base
ENV DEBIAN_FRONTEND=noninteractive
# gcc and Python.h: Triton compiles a launcher for each kernel.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc libc6-dev libgomp1 python3-dev python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
# TensorRT's Python package is apt's: a plain environment would hide it.
RUN python3 -m venv --system-site-packages /opt/edge-vla
ENV PATH=/opt/edge-vla/bin:$PATH

FROM base AS wheel
COPY . /source
RUN EDGE_VLA_LIBRARY=required pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /source

FROM base
# numpy below 2 before torch, which was built for it. torch alone, from NVIDIA's index; nothing later may replace it.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir numpy==1.26.4 \
    && pip install --no-cache-dir "torch>=2.6" --index-url https://pypi.jetson-ai-lab.io/jp6/cu126
COPY packaging/locks/jetson6.txt /tmp/jetson6.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/jetson6.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --no-deps /tmp/wheel/*.whl && rm -rf /tmp/wheel
ENV OMP_WAIT_POLICY=PASSIVE
RUN useradd --create-home --uid 1001 --groups video robot
USER 1001
WORKDIR /home/robot
ENTRYPOINT ["edge-vla"]
CMD ["doctor"]
