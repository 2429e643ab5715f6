# docker build -t drafthouse .                                  CUDA (torch's wheels bring its libraries, the host the driver)
# docker build -t drafthouse --build-arg DEVICE=cpu .           CPU
# docker build -t drafthouse:vllm --build-arg RUNNER=vllm .     CUDA, with vLLM and Ray beside the torch runner
ARG DEVICE=cuda
ARG RUNNER=torch

FROM python:3.12-slim AS cuda
ENV TORCH_INDEX="" NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM python:3.12-slim AS cpu
ENV TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"

FROM ${DEVICE} AS torch
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY constraints.txt .
RUN pip install -c constraints.txt ${TORCH_INDEX} torch
COPY . .
RUN pip install -c constraints.txt . && rm -rf /src/*

# vLLM names its own torch; its kernels are compiled when they are first used
FROM cuda AS vllm
ARG DEVICE
RUN test "$DEVICE" = cuda || { echo "RUNNER=vllm is built for CUDA only: docs/vllm-runner.md, Install"; exit 1; }
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip install ".[vllm,vllm-ray]" && rm -rf /src/*

FROM ${RUNNER}
RUN useradd --create-home --uid 1000 drafthouse
USER drafthouse
WORKDIR /home/drafthouse
ENV DRAFTHOUSE_HOST=0.0.0.0 DRAFTHOUSE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["drafthouse"]
CMD ["serve"]
