# The image of all nodes. Every package at the version of the lock file; nobody in it is root.
#   docker build -t fedplatform:0.1.0 .
FROM python:3.11-slim-bookworm AS build
# The CPU build of torch: the default one brings gigabytes of CUDA. For GPUs, --build-arg TORCH_INDEX=.../whl/cu128.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY fedplatform fedplatform
COPY actors actors
COPY tune tune
RUN pip install --no-cache-dir --prefix=/install --extra-index-url "$TORCH_INDEX" --constraint constraints.txt ".[all]"

FROM python:3.11-slim-bookworm
# The base's own would stay beside the lock file's.
RUN pip uninstall --yes --quiet setuptools wheel
# Below /usr/local, where a login shell finds it, too: that is how KubeRay starts Ray.
COPY --from=build /install /usr/local
RUN groupadd --gid 1000 fedplatform \
    && useradd --uid 1000 --gid 1000 --create-home fedplatform \
    && mkdir -p /home/fedplatform/runs /etc/fedplatform/tls \
    && chown -R fedplatform:fedplatform /home/fedplatform /etc/fedplatform
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
WORKDIR /home/fedplatform
CMD ["fedplatform", "--help"]
