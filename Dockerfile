# The container image, in two kinds:
#
#   docker build --target=production -t conuredb/conuredb:latest .      the server and nothing else
#   docker build -t conuredb/conuredb:dev .                             with the tests and their tools
#
#   docker run -d --name conuredb -p 127.0.0.1:8081:8081 conuredb/conuredb:latest --node-id=node1 --bootstrap
#   docker run --rm conuredb/conuredb:dev test            all tests that need neither root nor a
#                                                         compiler; pytest's flags may follow
#
# What both promise, and tools/image_check.py tries:
# 1. They run as user 1000 and write to /var/lib/conure only, so --read-only works.
# 2. The server is process 1 and gets its signals itself: a stop takes less than ten seconds.
# 3. Nothing in them but Python is needed, by health checks and probes neither; for --tls-auto, openssl,
#    which the base has with its CA certificates.
# 4. Whoever reaches a published port is served: to a container all clients come from another machine, so
#    protected mode would bar them all. The server says so at every start. Publish ports to this
#    machine only (-p 127.0.0.1:8081:8081), or serve by TLS and ask for certificates.

ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
COPY requirements.txt /app/
RUN pip install --no-cache-dir --disable-pip-version-check --no-compile --target=/app -r /app/requirements.txt
COPY *.py /app/
COPY conure /app/conure
# Charts start it by this name, those of earlier releases too.
RUN printf 'import runpy\n\nrunpy.run_module("conure.ops.scaling", run_name="__main__")\n' > /app/scaling.py
# Compiled here, because the server may not write there; nobody has to compare dates later.
RUN chmod -R a+rX /app && python3 -m compileall -q --invalidation-mode=unchecked-hash /app


FROM ${BASE} AS production
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=https://github.com/conuredb/conuredb
LABEL org.opencontainers.image.title="ConureDB" \
      org.opencontainers.image.description="A key-value store: Raft, a B-tree or an LSM tree, HTTP and RESP" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
RUN useradd --uid=1000 --user-group --no-create-home --home-dir=/nonexistent --shell=/usr/sbin/nologin conure \
    && install -d -o conure -g conure -m 750 /var/lib/conure \
    && ln -s /app/conuresh.py /usr/local/bin/conuresh
COPY --from=build /app /app
WORKDIR /app
ENV CONURE_DATA_DIR=/var/lib/conure \
    CONURE_PROTECTED_MODE=false \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
VOLUME /var/lib/conure
EXPOSE 8081 7001 9090 8080 2112
# Whoever moves the HTTP port, or speaks TLS there, says so by CONURE_SERVER=https://127.0.0.1:8081, with
# CONURE_CA, and CONURE_CERT and CONURE_KEY where clients have to show a certificate: the client in the
# container takes them as well. (Else docker run --health-cmd, --no-healthcheck.)
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["sh", "-c", "exec python3 -m conure.ops.probe ${CONURE_SERVER:-http://127.0.0.1:8081}/livez --insecure-name --timeout=4s"]
ENTRYPOINT ["python3", "/app/conuredb.py"]


FROM production AS dev
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt requirements-dev.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements-dev.txt
COPY . .
USER 1000:1000
# The tests are to meet an environment that says nothing; they may write to /tmp only.
ENTRYPOINT ["sh", "-c", "case $1 in test) shift; exec env -u CONURE_DATA_DIR -u CONURE_PROTECTED_MODE HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis python3 -m pytest -n 2 \"$@\";; esac; exec python3 conuredb.py \"$@\"", "conuredb"]
