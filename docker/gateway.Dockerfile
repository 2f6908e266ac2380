# The gateway: one binary, and of a system only libc. From the root of the repository:
#   docker build -f docker/gateway.Dockerfile -t realm-gateway .

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --package realm-gateway --bin realm \
    && install -D target/release/realm /out/opt/realm/realm \
    # A volume takes its owner from the folder that it is mounted on when it is new.
    && mkdir -p /out/run/realm /out/var/lib/realm

FROM gcr.io/distroless/cc-debian12
COPY --from=build /out/opt/realm/ /opt/realm/
COPY --from=build --chown=10001:10001 /out/run/realm/ /run/realm/
COPY --from=build --chown=10001:10001 /out/var/lib/realm/ /var/lib/realm/
USER 10001:10001
# The API. The admin listener stays on loopback unless REALM_ADMIN_ADDR says otherwise.
EXPOSE 8080
ENV REALM_HOST=0.0.0.0
ENTRYPOINT ["/opt/realm/realm"]
CMD ["serve"]
# Without a shell or curl: the command asks the admin listener.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/opt/realm/realm", "models", "list"]
