# One image; the command chooses the process (serve, join, learn, simulate ...).
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 MKL_CBWR=COMPATIBLE
WORKDIR /app

# The pinned dependencies change rarely, the code often: two layers.
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY policy policy
COPY stream stream
COPY serving serving
COPY grade_client grade_client
COPY simulator simulator
COPY evaluation evaluation
COPY monitor monitor
COPY benchmarks benchmarks
COPY cli cli
RUN pip install --no-deps --no-build-isolation .

RUN useradd --create-home grade && mkdir /data && chown grade /data
USER grade
VOLUME /data
ENV GRADE_DATA_DIR=/data GRADE_LOG_FORMAT=json
ENTRYPOINT ["grade"]
CMD ["--help"]
