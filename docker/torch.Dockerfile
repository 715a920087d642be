# PyTorch and nothing else: the layers that all images which compute have in common.
#   TORCH_INDEX  an index with PyTorch's CPU build, where there is no GPU
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=
COPY constraints.txt /source/
RUN python3 -m venv /opt/torch \
 && /opt/torch/bin/pip install --quiet --no-cache-dir --disable-pip-version-check torch numpy -c /source/constraints.txt \
      ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} \
 && /opt/torch/bin/pip uninstall --quiet --yes pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="PyTorch, for sfumato" org.opencontainers.image.licenses="BSD-3-Clause"
COPY --from=build /opt/torch /opt/torch
