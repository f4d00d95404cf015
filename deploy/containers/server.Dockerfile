# Control plane and dashboard. From the checkout's root:
#   docker build -f deploy/containers/server.Dockerfile -t trimtab-server:0.1.0 .
ARG BASE=python:3.11-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app
WORKDIR /app

COPY requirements/server.txt requirements/ui.txt requirements/
RUN python -m pip install --no-cache-dir --require-hashes -r requirements/server.txt -r requirements/ui.txt

COPY agents agents
COPY jobs jobs
COPY controlplane controlplane
COPY dashboards dashboards
COPY migrations migrations
# the root is read-only when it runs: bytecode is made here, by a hash of the source and not by its time
RUN python -m compileall -q --invalidation-mode unchecked-hash /app \
    && printf '#!/bin/sh\nexec python -m controlplane.cli.main "$@"\n' > /usr/local/bin/trimtab \
    && chmod 0755 /usr/local/bin/trimtab

USER 10001:10001
CMD ["trimtab", "serve"]
