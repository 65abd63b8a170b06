# docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" -t pgtenant .
# The registry first, then the node, with the same keys:
# export PGTENANT_ENCRYPTION_KEYS="$(docker run --rm pgtenant secrets generate-key)"
# docker run --rm -e PGTENANT_ENCRYPTION_KEYS -v pgtenant:/var/lib/pgtenant pgtenant registry upgrade
# docker run -e PGTENANT_ENCRYPTION_KEYS -p 6432:6432 -p 6480:6480 \
#     -v ./configs:/etc/pgtenant:ro -v pgtenant:/var/lib/pgtenant pgtenant
# Whoever reaches port 6480 reads the metrics: publish it to those who scrape only.

FROM python:3.13-bookworm AS builder
WORKDIR /build
# The dependencies alone first: they stay in the cache while only the source changes.
COPY pyproject.toml ./
RUN python -m venv /opt/pgtenant \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && /opt/pgtenant/bin/pip install --no-cache-dir --requirement requirements.txt
COPY setup.py README.md LICENSE ./
COPY proxy proxy
COPY registry registry
ARG COMMIT=""
RUN REQUIRE_COMPILED=1 PGTENANT_BUILD_COMMIT="$COMMIT" /opt/pgtenant/bin/pip install --no-cache-dir .

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/pgtenant pgtenant
COPY --from=builder /opt/pgtenant /opt/pgtenant
ENV PATH="/opt/pgtenant/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PGTENANT_LISTEN__HOST=0.0.0.0 \
    PGTENANT_HTTP__HOST=0.0.0.0 \
    PGTENANT_HTTP__PORT=6480
USER pgtenant
WORKDIR /var/lib/pgtenant
EXPOSE 6432 6480
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; \
r.urlopen(f'http://127.0.0.1:{os.environ[\"PGTENANT_HTTP__PORT\"]}/healthz', timeout=2).close()"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgtenant"]
CMD ["serve", "--config", "/etc/pgtenant/pgtenant.toml"]
