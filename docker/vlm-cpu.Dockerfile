# vLLM's CPU build with the built-in vision-language model, where there is no GPU. Context: the repository; `make images` builds all.
ARG TORCH=sfumato/torch:0.1.0

FROM ${TORCH} AS build
COPY pyproject.toml constraints.txt LICENSE docker/install.sh /source/
RUN /source/install.sh vlm
# The one library of the system that its kernels link to.
RUN apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends libnuma1

FROM ${TORCH}
COPY --from=build /opt/sfumato /opt/sfumato
COPY --from=build /usr/lib/x86_64-linux-gnu/libnuma.so.1 /opt/sfumato/lib/libnuma.so.1
# What changes with every commit is small and comes last: a new version is pushed and pulled without all that it needs.
COPY sfumato /opt/sfumato/lib/python3.11/site-packages/sfumato
COPY services /opt/sfumato/lib/python3.11/site-packages/services
COPY orchestrator /opt/sfumato/lib/python3.11/site-packages/orchestrator
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sfumato vlm-cpu" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV LD_LIBRARY_PATH=/opt/sfumato/lib
ENV PATH=/opt/sfumato/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
CMD ["sfumato", "vlm", "serve", "--profile", "vista", "--host", "0.0.0.0"]
