"""Requests that are decided together get the answers that each would get alone."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from grade.v1.policy_service_pb2 import SampleResponse

from policy.errors import InvalidContext
from serving.checked_context import CheckedContext
from serving.engine import Engine
from serving.gathering import Gathering
from tests.serving.parameters import EXAMPLE, made_context, made_snapshot


@pytest.fixture
def engine() -> Engine:
    engine = Engine(EXAMPLE, seed=5, members=8)
    assert engine.swap(engine.load(made_snapshot(3)))
    return engine


@pytest.fixture
def sizes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were decided together, each time."""
    found: list[int] = []
    decide = engine.decide

    def counted(requests: Sequence[CheckedContext]) -> list[SampleResponse]:
        found.append(len(requests))
        return decide(requests)

    monkeypatch.setattr(engine, "decide", counted)
    return found


def in_loop(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await play()

    asyncio.run(bounded())


def test_answers_are_those_of_single_requests(engine: Engine, sizes: list[int]) -> None:
    contexts = [made_context(number) for number in range(200)]
    alone = [engine.sample(context) for context in contexts]
    sizes.clear()

    async def play() -> None:
        gathering = Gathering(engine)
        assert await asyncio.gather(*map(gathering.sample, contexts)) == alone

    in_loop(play)
    assert sizes == [200]


def test_a_request_on_a_quiet_server_is_decided_at_once(engine: Engine, sizes: list[int]) -> None:
    async def play() -> None:
        gathering = Gathering(engine)
        for number in range(3):
            asked = asyncio.create_task(gathering.sample(made_context(number)))
            while not asked.done():
                await asyncio.sleep(0)
            assert asked.result() == engine.sample(made_context(number))

    in_loop(play)
    assert sizes == [1] * 6  # each twice: gathered and alone


def test_who_is_wrong_fails_alone(engine: Engine, sizes: list[int]) -> None:
    broken = made_context(1)
    broken.features.append(1.0)

    async def play() -> None:
        gathering = Gathering(engine)
        contexts = [made_context(0), broken, made_context(2)]
        answers = await asyncio.gather(*map(gathering.sample, contexts), return_exceptions=True)
        assert isinstance(answers[1], InvalidContext)
        assert str(answers[1]).startswith("context.features: expected")
        assert [answers[0], answers[2]] == [engine.sample(contexts[0]), engine.sample(contexts[2])]

    in_loop(play)
    assert sizes[0] == 2


def test_an_error_inside_reaches_everybody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requests: Sequence[CheckedContext]) -> list[SampleResponse]:
        raise FloatingPointError(len(requests))

    monkeypatch.setattr(engine, "decide", fail)

    async def play() -> None:
        gathering = Gathering(engine)
        asked = [gathering.sample(made_context(number)) for number in range(3)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [FloatingPointError] * 3

    in_loop(play)


def test_who_has_given_up_is_not_decided_for(engine: Engine, sizes: list[int]) -> None:
    async def play() -> None:
        gathering = Gathering(engine)
        gathering.hold()
        asked = [asyncio.create_task(gathering.sample(made_context(n))) for n in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.sleep(0)
        assert sizes == []  # held
        gathering.release()
        assert await asked[2] == engine.sample(made_context(2))

    in_loop(play)
    assert sizes[0] == 2
