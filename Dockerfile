# docker build -t drafthouse .                          CUDA (torch's wheels bring its libraries, the host the driver)
# docker build -t drafthouse --build-arg DEVICE=cpu .   CPU
ARG DEVICE=cuda

FROM python:3.12-slim AS cuda
ENV TORCH_INDEX="" NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM python:3.12-slim AS cpu
ENV TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"

FROM ${DEVICE}
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY constraints.txt .
RUN pip install -c constraints.txt ${TORCH_INDEX} torch
COPY . .
RUN pip install -c constraints.txt . && rm -rf /src/*
RUN useradd --create-home drafthouse
USER drafthouse
WORKDIR /home/drafthouse
ENV DRAFTHOUSE_HOST=0.0.0.0 DRAFTHOUSE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["drafthouse"]
CMD ["serve"]
