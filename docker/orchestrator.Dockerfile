# The orchestrator: it drives runs, and computes nothing. Context: the repository; `make images` builds all.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
COPY pyproject.toml constraints.txt README.md LICENSE docker/install.sh /source/
COPY sfumato /source/sfumato
COPY services /source/services
COPY orchestrator /source/orchestrator
RUN /source/install.sh orchestrator,grpc

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sfumato orchestrator" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sfumato /opt/sfumato
ENV PATH=/opt/sfumato/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 7106 7206
CMD ["python", "-m", "orchestrator.app"]
