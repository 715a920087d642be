# The grounding service: it asks the understanding module. Context: the repository; `make images` builds all.
ARG TORCH=sfumato/torch:0.1.0

FROM ${TORCH} AS build
COPY pyproject.toml constraints.txt LICENSE docker/install.sh /source/
RUN /source/install.sh grounding,grpc

FROM ${TORCH}
COPY --from=build /opt/sfumato /opt/sfumato
# What changes with every commit is small and comes last: a new version is pushed and pulled without all that it needs.
COPY sfumato /opt/sfumato/lib/python3.11/site-packages/sfumato
COPY services /opt/sfumato/lib/python3.11/site-packages/services
COPY orchestrator /opt/sfumato/lib/python3.11/site-packages/orchestrator
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sfumato grounding" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/sfumato/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 7102 7202
CMD ["python", "-m", "services.grounding.app"]
