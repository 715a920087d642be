# vLLM's CPU build with the built-in vision-language model, where there is no GPU. Context: the repository; `make images` builds all.
ARG TORCH=sfumato/torch:0.1.0

FROM ${TORCH} AS build
COPY pyproject.toml constraints.txt README.md LICENSE docker/install.sh /source/
COPY sfumato /source/sfumato
COPY services /source/services
COPY orchestrator /source/orchestrator
RUN /source/install.sh vlm
# The one library of the system that its kernels link to.
RUN apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends libnuma1

FROM ${TORCH}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sfumato vlm-cpu" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sfumato /opt/sfumato
COPY --from=build /usr/lib/x86_64-linux-gnu/libnuma.so.1 /opt/sfumato/lib/libnuma.so.1
ENV LD_LIBRARY_PATH=/opt/sfumato/lib
ENV PATH=/opt/sfumato/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
CMD ["sfumato", "vlm", "serve", "--profile", "vista", "--host", "0.0.0.0"]
