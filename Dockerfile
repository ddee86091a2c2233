# stedm in a container, on CPUs:
#   docker build -t stedm .
#   docker run --rm -v "$PWD":/data stedm demo -o demo
# For NVIDIA GPUs (docker run --gpus all ...), PyTorch's wheels for a CUDA release:
#   docker build -t stedm:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Files in /data belong to user 1000, or to whom --user names.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/stedm
ENV PATH=/opt/stedm/bin:$PATH
# Of two releases with one number pip takes the one of TORCH_INDEX (2.14.1+cpu is more than 2.14.1). First, and alone: it
# is large, and changes less often than the code.
WORKDIR /source
COPY requirements/tested.txt requirements/
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --constraint requirements/tested.txt torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --constraint requirements/tested.txt \
    ".[app,data,quality,slides]"

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 1000 --create-home stedm && install --directory --owner stedm --mode 0777 /data
COPY --from=build /opt/stedm /opt/stedm
# What libraries remember goes where any user may write.
ENV PATH=/opt/stedm/bin:$PATH OMP_WAIT_POLICY=passive MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache
USER 1000
WORKDIR /data
ENTRYPOINT ["stedm"]
CMD ["--help"]
