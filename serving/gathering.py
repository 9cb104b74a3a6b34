"""Requests that come at about the same time are decided together.

Together a decision costs a third of what it costs alone, and the event loop wakes up less often. So
on a busy server a request waits up to `GATHER_S` for others; on a quiet one it does not wait.
"""

import asyncio
from typing import Final

from grade.v1.context_pb2 import Context
from grade.v1.policy_service_pb2 import SampleResponse

from serving.checked_context import CheckedContext
from serving.engine import Engine

GATHER_S: Final = 0.001
"""Longest wait for other requests, in seconds."""
LEAST_EXPECTED: Final = 2
"""Further requests that must be expected within `GATHER_S` to make it worth waiting."""
_SHARE: Final = 0.1
"""Of the latest gap in the running mean."""


class Gathering:
    """Decides the requests of one engine. Belongs to one event loop.

    Args:
        engine: what decides.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[tuple[CheckedContext, asyncio.Future[SampleResponse]]] = []
        # Between requests, in seconds: a running mean.
        self._gap_s = 1.0
        self._latest_at = 0.0
        self._held = False

    def hold(self) -> None:
        """Decide nothing until `release`."""
        self._held = True

    def release(self) -> None:
        """Decide what has been held, and go on."""
        self._held = False
        self._decide()

    async def sample(self, context: Context) -> SampleResponse:
        """Decide one request; the answer is that of `Engine.sample`.

        Raises:
            InvalidContext: naming the field.
        """
        checked = self._engine.check(context, "context")
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._gap_s += _SHARE * (now - self._latest_at - self._gap_s)
        self._latest_at = now
        answer: asyncio.Future[SampleResponse] = loop.create_future()
        if not self._waiting:
            busy = self._gap_s * LEAST_EXPECTED < GATHER_S
            loop.call_later(GATHER_S if busy else 0, self._decide)
        self._waiting.append((checked, answer))
        return await answer

    def _decide(self) -> None:
        if self._held:
            return
        # A caller that has given up has cancelled its answer.
        asked = [each for each in self._waiting if not each[1].done()]
        self._waiting = []
        if not asked:
            return
        try:
            responses = self._engine.decide([checked for checked, _ in asked])
        except Exception as error:  # every caller is told, by its own call
            for _, answer in asked:
                answer.set_exception(error)
        else:
            for (_, answer), response in zip(asked, responses, strict=True):
                answer.set_result(response)
