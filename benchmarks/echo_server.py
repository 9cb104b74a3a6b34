"""A bare gRPC server of one process that answers always the same, at once.

What it answers is a policy server's answer, so the sizes of the messages are the same; what it
leaves out is all that the policy server does to find one. It answers from threads: where there is
nothing to do, that is grpcio's faster way.
"""

import argparse
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grade.v1.policy_service_pb2 import (
    DescribePolicyRequest,
    DescribePolicyResponse,
    SampleBatchRequest,
    SampleBatchResponse,
    SampleRequest,
    SampleResponse,
)
from grade.v1.policy_service_pb2_grpc import (
    PolicyServiceServicer,
    add_PolicyServiceServicer_to_server,
)

from serving.server import ServerSettings

THREADS = 3
"""Handlers that run at once; more are slower, as they share one interpreter lock."""


class Echo(PolicyServiceServicer):
    """Answers `Sample` alone.

    Args:
        answer: what it answers.
    """

    def __init__(self, answer: SampleResponse) -> None:
        self._answer = answer

    def Sample(  # noqa: N802 - the contract's name
        self, request: SampleRequest, context: grpc.ServicerContext
    ) -> SampleResponse:
        """The answer."""
        return self._answer

    def SampleBatch(  # noqa: N802 - the contract's name
        self, request: SampleBatchRequest, context: grpc.ServicerContext
    ) -> SampleBatchResponse:
        """Not measured: here only because the generated class demands it."""
        raise NotImplementedError

    def DescribePolicy(  # noqa: N802 - the contract's name
        self, request: DescribePolicyRequest, context: grpc.ServicerContext
    ) -> DescribePolicyResponse:
        """Not measured: here only because the generated class demands it."""
        raise NotImplementedError


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answer", type=Path, required=True, help="file with a SampleResponse")
    parser.add_argument("--port-file", type=Path, required=True)
    given = parser.parse_args(argv)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(
        ThreadPoolExecutor(THREADS), maximum_concurrent_rpcs=ServerSettings().max_concurrent_rpcs
    )
    answer = SampleResponse.FromString(given.answer.read_bytes())
    add_PolicyServiceServicer_to_server(Echo(answer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    written = given.port_file.with_suffix(".new")
    written.write_text(f"{port}\n", encoding="ascii")
    written.replace(given.port_file)
    stop.wait()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
