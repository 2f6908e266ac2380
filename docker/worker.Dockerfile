# The worker and libtorch. From the root of the repository:
#   docker build -f docker/worker.Dockerfile -t realm-worker .
# and for NVIDIA GPUs too, with 2.3 GB more of libraries:
#   docker build -f docker/worker.Dockerfile --build-arg CUDA=1 -t realm-worker-cuda .

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG CUDA=
# libtorch is fetched as its wheels are pinned in xtask/src/wheels.rs.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    --mount=type=cache,target=/root/.cache/realm \
    cargo xtask install --only worker ${CUDA:+--cuda} /out/opt/realm \
    # A fifth of libtorch are names that only debuggers read.
    && strip --strip-unneeded /out/opt/realm/torch/lib/libtorch_cpu.so \
    && mkdir -p /out/run/realm /out/var/cache/realm

FROM debian:bookworm-slim
COPY --from=build /out/opt/realm/ /opt/realm/
COPY --from=build --chown=10001:10001 /out/run/realm/ /run/realm/
# Where kernels are kept that were compiled for a GPU: worth a volume.
COPY --from=build --chown=10001:10001 /out/var/cache/realm/ /var/cache/realm/
USER 10001:10001
# Threads that wait for work sleep, as others share the cores.
ENV OMP_WAIT_POLICY=passive
# What NVIDIA's container toolkit is to bring of the driver, where there is a GPU.
ENV NVIDIA_DRIVER_CAPABILITIES=compute
ENV XDG_CACHE_HOME=/var/cache
ENTRYPOINT ["/opt/realm/realm-worker"]
# A first process of a container does not end by SIGTERM unless it asks for that, and there is nothing to
# finish: the gateway keeps every sequence.
STOPSIGNAL SIGKILL
CMD ["serve", "--model", "embedded", "--socket", "/run/realm/model.sock"]
# It listens. That it computes is the gateway's to find out.
HEALTHCHECK --interval=10s --start-period=10s CMD ["grep", "-q", "/run/realm/model.sock", "/proc/net/unix"]
