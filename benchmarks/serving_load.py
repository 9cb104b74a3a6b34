"""The load generator of benchmarks/serving.py: asks two servers in turn, from one process.

Requests are serialized beforehand and answers are not read, so that most of the machine is left to
the servers.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from grade.v1.context_pb2 import Context
from grade.v1.policy_service_pb2 import SampleBatchRequest, SampleRequest

POLICY: Final = "marketplace"
FEATURES: Final = 16
IN_FLIGHT: Final = (1, 8, 32)
BATCHES: Final = (64, 256)
BATCHES_IN_FLIGHT: Final = 4
_DIFFERENT: Final = 4096
_WARM_UP_S: Final = 0.5


def context(number: int) -> Context:
    """A request; the number makes its name, its unit and its features."""
    features = np.random.default_rng(number).normal(size=FEATURES).astype(np.float32)
    return Context(
        policy=POLICY,
        request_id=f"request-{number:08d}",
        unit_id=f"unit-{number % 997}",
        features=features.tolist(),
    )


class Stretch(NamedTuple):
    """What one server did for a while."""

    calls_per_s: float
    cpu_us: float
    """Processor time of the server per call; NaN where /proc does not tell."""
    latencies_ms: list[float]


async def load(
    server: dict[str, int], method: str, requests: Sequence[bytes], in_flight: int, seconds: float
) -> Stretch:
    """Keep a number of calls in flight for a while.

    Args:
        server: its `port` and `pid`.
        method: name of the RPC.
        requests: serialized; asked in turn.
        in_flight: calls in flight.
        seconds: how long.
    """
    latencies: list[float] = []

    async def ask(first: int) -> None:
        number = first
        while time.perf_counter() < end:
            began = time.perf_counter()
            await call(requests[number % len(requests)])
            latencies.append((time.perf_counter() - began) * 1000)
            number += in_flight

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server['port']}") as channel:
        call: Any = channel.unary_unary(f"/grade.v1.PolicyService/{method}")
        await call(requests[0])
        cpu_s, began = _cpu_s(server["pid"]), time.perf_counter()
        end = began + seconds
        await asyncio.gather(*(ask(first) for first in range(in_flight)))
        took = time.perf_counter() - began
    cpu_us = (_cpu_s(server["pid"]) - cpu_s) / len(latencies) * 1e6
    return Stretch(len(latencies) / took, cpu_us, latencies)


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / 100


async def measure(plan: dict[str, Any]) -> dict[str, float]:
    """The figures of benchmarks/serving.py but `vs_echo`."""
    singles = [SampleRequest(context=context(n)) for n in range(_DIFFERENT)]
    requests = [request.SerializeToString() for request in singles]
    seconds: float = plan["stretch_s"]
    for server in ("policy", "echo"):
        await load(plan[server], "Sample", requests, 8, _WARM_UP_S)
    figures: dict[str, float] = {}
    for in_flight in IN_FLIGHT:
        rounds = []
        for number in range(plan["rounds"]):
            order = ("policy", "echo") if number % 2 else ("echo", "policy")
            rounds.append(
                {s: await load(plan[s], "Sample", requests, in_flight, seconds) for s in order}
            )
        for server, prefix in (("policy", ""), ("echo", "echo_")):
            seen = [each[server] for each in rounds]
            latencies = np.concatenate([each.latencies_ms for each in seen])
            p50, p99 = np.percentile(latencies, [50, 99])
            figures[f"{prefix}requests_per_s_{in_flight}"] = median(s.calls_per_s for s in seen)
            figures[f"{prefix}p50_ms_{in_flight}"] = float(p50)
            figures[f"{prefix}p99_ms_{in_flight}"] = float(p99)
            figures[f"{prefix}cpu_us"] = median(s.cpu_us for s in seen)
        figures[f"vs_echo_{in_flight}"] = median(
            each["policy"].calls_per_s / each["echo"].calls_per_s for each in rounds
        )
    for size in BATCHES:
        batches = [
            SampleBatchRequest(
                policy=POLICY, requests=singles[first : first + size]
            ).SerializeToString()
            for first in range(0, _DIFFERENT, size)
        ]
        stretches = [
            await load(plan["policy"], "SampleBatch", batches, BATCHES_IN_FLIGHT, seconds)
            for _ in range(plan["rounds"])
        ]
        figures[f"decisions_per_s_{size}"] = size * median(s.calls_per_s for s in stretches)
    figures["decisions_per_s"] = max(figures[f"decisions_per_s_{size}"] for size in BATCHES)
    return figures


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(json.loads(sys.argv[1])))))
