"""How many decisions a policy server gives, beside a gRPC server that only echoes.

    python -m benchmarks.serving --full

`grade serve` runs as a process of its own, with a learned version and without Kafka; so do the echo
server (benchmarks/echo_server.py) and the load generator (benchmarks/serving_load.py), which asks
the two in turn. Every ratio is of neighbouring stretches of time and the median of all rounds, so
that a machine that is busy with something else does not decide it.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.policy_service_pb2 import SampleRequest
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub
from safetensors.numpy import save

import simulator
from benchmarks.serving_load import IN_FLIGHT, context
from policy.initial import initial_parameters
from policy.schema import Schema, load_schema
from serving.snapshot_file import write_snapshot

SCHEMA_PATH: Final = Path(str(simulator.__file__)).with_name("marketplace.toml")
_START_TIMEOUT_S: Final = 60.0


def run(full: bool) -> dict[str, float]:
    """Measure.

    Args:
        full: for as long as quoted figures need (about two minutes); else about 20 seconds.

    Returns:
        by number of calls in flight n: `requests_per_s_<n>`, `p50_ms_<n>` and `p99_ms_<n>` of
        Sample, the same of the echo server with `echo_` before, `vs_echo_<n>`; `vs_echo` is that
        of the most calls in flight. `cpu_us` and `echo_cpu_us` are the servers' processor time per
        call at the most calls in flight. By size of batch b: `decisions_per_s_<b>` of SampleBatch,
        four calls in flight; `decisions_per_s` is the best of them.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        policy = stack.enter_context(_policy_server(folder))
        answer = folder / "answer"
        answer.write_bytes(_answer(policy.port))
        echo = stack.enter_context(_echo_server(folder, answer))
        plan = {
            "policy": {"port": policy.port, "pid": policy.pid},
            "echo": {"port": echo.port, "pid": echo.pid},
            "rounds": 9 if full else 3,
            "stretch_s": 2.0 if full else 0.7,
        }
        load = subprocess.run(
            [sys.executable, "-m", "benchmarks.serving_load", json.dumps(plan)],
            stdout=subprocess.PIPE,
            check=True,
        )
    figures: dict[str, float] = json.loads(load.stdout)
    figures["vs_echo"] = figures[f"vs_echo_{max(IN_FLIGHT)}"]
    return figures


class _Server:
    """A server process and its port."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.pid = process.pid
        self.port = port


@contextmanager
def _policy_server(folder: Path) -> Iterator[_Server]:
    schema = load_schema(SCHEMA_PATH)
    write_snapshot(folder / "serve" / "grade" / f"{schema.policy}.snapshot", learned(schema))
    environment = {
        "GRADE_SCHEMA_PATH": str(SCHEMA_PATH),
        "GRADE_DATA_DIR": str(folder),
        "GRADE_TOPIC_PREFIX": "grade",
        "GRADE_BOOTSTRAP_SERVERS": "127.0.0.1:9",  # nobody: the version on disk is served
        "GRADE_SERVE_READY_TIMEOUT_S": "0",
        "GRADE_SERVE_PORT": "0",
        "GRADE_SERVE_ADMIN_PORT": "0",
        "GRADE_LOG_LEVEL": "error",
    }
    with _started(["cli.main", "serve"], folder / "policy-port", environment) as server:
        yield server


@contextmanager
def _echo_server(folder: Path, answer: Path) -> Iterator[_Server]:
    command = ["benchmarks.echo_server", "--answer", str(answer)]
    with _started(command, folder / "echo-port", {}) as server:
        yield server


@contextmanager
def _started(
    module: Sequence[str], port_file: Path, environment: dict[str, str]
) -> Iterator[_Server]:
    """Run a module that writes its port to a file, until the end of the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRADE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", *module, "--port-file", str(port_file)], env=kept | environment
    )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(module)}: expected it to answer, seen it fail")
            time.sleep(0.05)  # polling another process
        yield _Server(process, int(port_file.read_text(encoding="ascii")))
    finally:
        process.terminate()
        process.wait()


def learned(schema: Schema) -> ParameterSnapshot:
    """A version as the learner makes them: nothing is zero, and the gate is half open."""
    generator = np.random.default_rng(0)
    tensors = initial_parameters(schema, seed=0)
    for name in ("hidden1_bias", "mean_weight", "mean_bias", "concentration_weight"):
        tensors[name] += generator.normal(0, 0.05, tensors[name].shape)
    tensors["gate"] = np.array([0.5])
    parameters = save(tensors)
    return ParameterSnapshot(
        policy=schema.policy,
        epoch=1,
        version=1,
        schema_digest=schema.digest,
        parameters=parameters,
        parameters_sha256=hashlib.sha256(parameters).digest(),
        slot=1,
        slot_ms=250,
    )


def _answer(port: int) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = PolicyServiceStub(channel).Sample(SampleRequest(context=context(0)), timeout=10)
    if (response.epoch, response.version) != (1, 1):
        raise RuntimeError(f"expected version 1 to serve, seen {response.version}")
    return response.SerializeToString()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="as long as quoted figures need")
    figures: dict[str, Any] = dict(run(parser.parse_args(argv).full))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
