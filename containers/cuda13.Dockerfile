FROM nvidia/cuda:13.0.1-base-ubuntu24.04

ARG constraints="containers/constraints-cuda13.txt"
ARG environment="PIP_NO_CACHE_DIR=1"
ARG revision="unknown"

RUN apt-get update -y && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        cuda-nsight-systems-13-0 \
        python3 \
        python3-venv && \
    rm -rf /var/lib/apt/lists/*

COPY pyproject.toml /opt/dasf-hpc-source/pyproject.toml

COPY hatch_build.py /opt/dasf-hpc-source/hatch_build.py

COPY README.md /opt/dasf-hpc-source/README.md

COPY LICENSE /opt/dasf-hpc-source/LICENSE

COPY containers /opt/dasf-hpc-source/containers

COPY dasf_hpc /opt/dasf-hpc-source/dasf_hpc

COPY lsf /opt/dasf-hpc-source/lsf

COPY pbs /opt/dasf-hpc-source/pbs

COPY slurm /opt/dasf-hpc-source/slurm

COPY ${constraints} /opt/dasf-hpc-source/constraints.txt

RUN apt-get update -y && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev python3-dev && \
    python3 -m venv /opt/dasf-hpc && \
    export ${environment} && \
    /opt/dasf-hpc/bin/pip install --constraint /opt/dasf-hpc-source/constraints.txt /opt/dasf-hpc-source 'dask-cuda[cu13]' 'cupy-cuda13x[ctk]' 'distributed-ucxx-cu13' && \
    apt-get purge -y --auto-remove gcc libc6-dev python3-dev && \
    rm -r /opt/dasf-hpc-source /var/lib/apt/lists/*

ENV PATH=/opt/dasf-hpc/bin:$PATH

LABEL org.opencontainers.image.revision=${revision} \
    org.opencontainers.image.title=dasf-hpc-cuda13 \
    org.opencontainers.image.version=0.1.0

ENTRYPOINT ["dasf-hpc"]

RUN export PATH=/opt/dasf-hpc/bin:$PATH && \
    dasf-hpc doctor --on local --runs-dir /tmp/dasf-hpc-image-test && \
    dasf-hpc submit --on local --runs-dir /tmp/dasf-hpc-image-test example:seismic --shape 16 16 16 && \
    rm -rf /tmp/dasf-hpc-image-test
