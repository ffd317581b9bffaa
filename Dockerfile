# The `sweep` command with torch, for docker-compose.yml or alone:
#   docker build -t sweep . && docker run --rm sweep sweep run studies/diabetes_linear.yaml
FROM python:3.11-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 10001 sweep

# An index that carries torch's CPU build; without one pip takes the CUDA build, several GB larger.
ARG PIP_EXTRA_INDEX_URL

# Dependencies alone: this layer is made again only when one of these two files changes.
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY sweep sweep
RUN pip install --no-cache-dir --no-deps .

# Study files are named relative to here; without SWEEP_STORAGE, sweep.db is made here.
WORKDIR /home/sweep
COPY studies studies
# By number, so that a host that must not run root can see that it is not.
USER 10001

CMD ["sweep", "--help"]
