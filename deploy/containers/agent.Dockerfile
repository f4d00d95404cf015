# The node agent: the Prometheus client, gRPC for the kubelet's socket, and what AMD's library, which is the node's,
# links to. From the checkout's root:
#   docker build -f deploy/containers/agent.Dockerfile -t trimtab-agent:0.1.0 .
ARG BASE=python:3.11-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app
WORKDIR /app

# hadolint ignore=DL3008 # a pinned version of Debian's leaves its mirrors with the next point release
RUN apt-get update && apt-get install -y --no-install-recommends libdrm2 libdrm-amdgpu1 && rm -rf /var/lib/apt/lists/*

COPY requirements/agent.txt requirements/
RUN python -m pip install --no-cache-dir --require-hashes -r requirements/agent.txt

COPY agents agents
RUN python -m compileall -q --invalidation-mode unchecked-hash /app \
    && printf '#!/bin/sh\nexec python -m agents.node.main "$@"\n' > /usr/local/bin/trimtab-agent \
    && chmod 0755 /usr/local/bin/trimtab-agent

USER 10001:10001
CMD ["trimtab-agent", "--help"]
