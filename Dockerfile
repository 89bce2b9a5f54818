# CPU: `docker build -t opensiglip .`; CUDA: add `--build-arg BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04`.
ARG BASE=python:3.12-slim
FROM ${BASE}

# A base without Python (CUDA's) gets its distribution's.
RUN command -v python3 >/dev/null || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*)

RUN useradd --create-home --uid 10001 opensiglip
WORKDIR /opt/opensiglip
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1

# The pins first: they change less often than the code.
COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

USER opensiglip
WORKDIR /home/opensiglip
EXPOSE 8000
ENTRYPOINT ["opensiglip"]
CMD ["--help"]
