# The reference workload on an image that has AMD's torch: nothing is installed from an index, since the wheels that fit
# your ROCm are the image's own. From the checkout's root:
#   docker build -f deploy/containers/trainer.Dockerfile --build-arg BASE=<image with torch for ROCm> -t trimtab-trainer:0.1.0 .
ARG BASE
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app
WORKDIR /app

COPY agents agents
COPY jobs jobs
# fails the build, and not the run, where the image has no `python` or no torch
RUN python -m compileall -q --invalidation-mode unchecked-hash /app \
    && python -c "import torch, jobs.launch, jobs.zaya.train, agents.probe.attach"

USER 10001:10001
CMD ["python", "-m", "jobs.launch", "--", "python", "-m", "torch.distributed.run", "-m", "jobs.zaya.train"]
