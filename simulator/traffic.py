"""Plays ranking tier and users against a running system, through `grade_client` alone.

Open loop: requests arrive at their times whether or not the server keeps up. Each asks for weights,
shows the list that they lead to, logs it, and later sends what the user did, when it is due. What
real event producers do wrong is done too: events are repeated, held up and lost.
"""

import contextlib
import heapq
import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grade_client import (
    DeliveryFailed,
    EventProducer,
    EventRefused,
    PolicyCallFailed,
    PolicyClient,
    Sampled,
    blend,
    decode_decision,
)
from policy.errors import GradeError
from policy.fusion import rank
from policy.schema import Schema
from simulator.marketplace import (
    CLICK,
    FEATURES,
    OBJECTIVES,
    ORDER,
    Marketplace,
    Outcome,
    Request,
)
from simulator.metrics import EVENTS_REFUSED, FAILED_RPCS, REQUESTS
from simulator.truth import Truth, rounded

STATUS_EVERY_S: Final = 1.0
RECENT_CALLS: Final = 3_000
"""Calls that the status's latencies are of."""
RETRY_AFTER_S: Final = 0.1
REFERENCE_REQUESTS: Final = 256
"""Requests on which static weights are searched for the live view."""
_TOTALS: Final = (
    "decisions",
    "failed_rpcs",
    "given_up",
    "overdue",
    "events_refused",
    "impressions",
    "impressions_repeated",
    "impressions_held_up",
    "impressions_lost",
    "conversions",
    CLICK,
    ORDER,
    "conversions_repeated",
    "conversions_lost",
)
_METRICS: Final = {"failed_rpcs": FAILED_RPCS, "events_refused": EVENTS_REFUSED}
_LONGEST_SLEEP_S: Final = 0.005
_LONGEST_QUEUE: Final = 2_000


@dataclass(frozen=True, slots=True)
class Mishaps:
    """How often event producers get it wrong; shares in [0, 1]."""

    impression_lost: float = 0.005
    """Never logged; what its user does has no impression."""
    impression_repeated: float = 0.005
    impression_held_up: float = 0.02
    """Logged late, so that a quick conversion can be logged before it."""
    longest_hold_up_s: float = 0.5
    conversion_lost: float = 0.005
    conversion_repeated: float = 0.01
    longest_repeat_s: float = 1.0
    """How long after an event its repetition comes at most."""


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """How to play."""

    rate: float = 300.0
    """Requests per second."""
    duration_s: float | None = None
    """Length of the traffic; None: until stopped."""
    drift_at_s: float | None = None
    """When all users change their taste, seconds after the start."""
    threads: int = 12
    """Requests that may be asked for at once."""
    value_every: int = 10
    """Every n-th request is valued by the truth."""
    unshown: int = 50
    """Candidates that were not shown whose scores are logged. All of them by default: signals are
    standardised over what is logged, which then is what was ranked."""
    mishaps: Mishaps = Mishaps()


class Traffic:
    """One run of simulated traffic.

    Args:
        world: the users and candidates.
        client: asks the policy server.
        producer: logs events.
        settings: how to play.
        run: prefix of the request_ids; another for each run on the same topics.

    Raises:
        GradeError: the policy server serves another policy than the world's.
        PolicyCallFailed: the policy server does not answer.
    """

    def __init__(
        self,
        world: Marketplace,
        client: PolicyClient,
        producer: EventProducer,
        settings: TrafficSettings,
        run: str,
    ) -> None:
        self._world = world
        self._client = client
        self._producer = producer
        self._settings = settings
        self._run = run
        self._schema = client.describe().schema
        _check_schema(self._schema)
        self._truth = Truth(world, self._schema)
        drifts = (False, True) if settings.drift_at_s is not None else (False,)
        self._static = {
            drifted: self._truth.static_recovered(REFERENCE_REQUESTS, drifted=drifted)
            for drifted in drifts
        }
        self._gaps = np.random.default_rng([world.settings.seed, 3])
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._calls: list[tuple[float, float]] = []
        self._recent: deque[float] = deque(maxlen=RECENT_CALLS)
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._began = 0.0
        self._asked_until = 0.0

    def stop(self) -> None:
        """End soon; may be called from a signal handler."""
        self._stop.set()

    def run(self, on_status: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Play until the duration is over or `stop` is called.

        After the last request, events that are due within the attribution window are still sent.

        Args:
            on_status: called about once a second with the state so far.

        Returns:
            the report; see `report`. Events that Kafka did not confirm are counted in it.
        """
        threads = [
            threading.Thread(target=self._work, name=f"traffic-{number}", daemon=True)
            for number in range(self._settings.threads)
        ]
        self._began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            self._arrive(on_status)
        finally:
            for _ in threads:
                self._queue.put(None)
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        self._send_due(self._elapsed())
        with contextlib.suppress(DeliveryFailed):  # the report counts what was not delivered
            self._producer.flush()
        if on_status is not None:
            on_status(self.status())
        return self.report()

    def status(self) -> dict[str, Any]:
        """The state so far, for a live view."""
        with self._lock:
            recent = list(self._recent)
            curve = self._truth.curve()
            counts = Counter(self._counts)
        drifted = self._drifted(self._elapsed())
        known = [point["recovered"] for point in curve if point["recovered"] is not None]
        return {
            "elapsed_s": round(self._elapsed(), 3),
            "drifted": drifted,
            **self._totals(counts),
            "rpc_ms": _percentiles(recent),
            "curve": curve,
            "value": {
                "recovered": known[-1] if known else None,
                "static_recovered": rounded(self._static[drifted]),
            },
        }

    def report(self) -> dict[str, Any]:
        """What the whole run came to; `value` is that of the last quarter of its requests."""
        end_s = self._asked_until
        with self._lock:
            value = self._truth.over(0.75 * end_s, end_s + 1)
            return {
                "elapsed_s": round(self._elapsed(), 3),
                **self._totals(self._counts),
                "events_undelivered": self._producer.sent - self._producer.confirmed,
                "rpc_ms": _percentiles([latency for _, latency in self._calls]),
                "value": value.as_json(),
                "curve": self._truth.curve(),
            }

    def health(self) -> dict[str, Any]:
        """What /health tells."""
        with self._lock:
            told = {name: self._counts[name] for name in ("decisions", *_METRICS)}
        return {"status": "ok", "elapsed_s": round(self._elapsed(), 3), **told}

    def calls(self) -> npt.NDArray[np.float64]:
        """[call, 2] wall time at which a call began, and its latency, both in milliseconds."""
        with self._lock:
            return np.array(self._calls, dtype=np.float64).reshape(-1, 2)

    def _arrive(self, on_status: Callable[[dict[str, Any]], None] | None) -> None:
        """Hand requests and due events on at their times."""
        settings = self._settings
        duration = np.inf if settings.duration_s is None else settings.duration_s
        drained = duration + self._schema.window_ms / 1000
        number, arrival, next_status = 0, 0.0, 0.0
        while not self._stop.is_set() and self._failure is None:
            now = self._elapsed()
            while arrival <= now and arrival < duration:
                if self._queue.qsize() < _LONGEST_QUEUE:
                    self._queue.put(number)
                else:
                    self._count("overdue")
                self._asked_until = arrival
                number += 1
                arrival += float(self._gaps.exponential(1 / settings.rate))
            self._send_due(now)
            if on_status is not None and now >= next_status:
                on_status(self.status())
                next_status = now + STATUS_EVERY_S
            if now >= drained or (arrival >= duration and not self._due and self._queue.empty()):
                return
            self._stop.wait(min(max(arrival - self._elapsed(), 0.0005), _LONGEST_SLEEP_S))

    def _work(self) -> None:
        while (number := self._queue.get()) is not None:
            if self._stop.is_set() or self._failure is not None:
                continue
            try:
                self._play(number)
            except BaseException as error:  # ends the run; raised again by `run`
                self._failure = error

    def _play(self, number: int) -> None:
        """One request: ask, rank, show, log, and let the user react."""
        REQUESTS.inc()
        with self._lock:  # the world draws in chunks
            request = self._world.request(number)
        request_id = f"{self._run}-{number}"
        sampled = self._ask(request_id, request)
        if sampled is None:
            return
        at = self._elapsed()
        drifted = self._drifted(at)
        ranking = rank(blend(self._schema, sampled.weights, request.scores))
        shown = ranking[: self._world.settings.shown]
        with self._lock:
            outcomes = self._world.feedback(number, shown, drifted=drifted)
            if number % self._settings.value_every == 0:
                decision = decode_decision(sampled.decision)
                self._truth.value(request, decision, at, drifted=drifted)
        luck = np.random.default_rng([self._world.settings.seed, 2, number])
        self._show(sampled, request, ranking, at, luck)
        for outcome in outcomes:
            self._react(request_id, outcome, at, luck)

    def _ask(self, request_id: str, request: Request) -> Sampled | None:
        """The server's answer; asks a second time once if there was none."""
        for attempt in (1, 2):
            wall_ms, began = time.time() * 1000, time.perf_counter()
            try:
                sampled = self._client.sample(request_id, request.unit_id, request.features)
            except PolicyCallFailed:
                self._count("failed_rpcs")
                if attempt == 1 and not self._stop.wait(RETRY_AFTER_S):
                    continue
                self._count("given_up")
                return None
            latency = (time.perf_counter() - began) * 1000
            with self._lock:
                self._counts["decisions"] += 1
                self._calls.append((wall_ms, latency))
                self._recent.append(latency)
            return sampled
        return None

    def _show(
        self,
        sampled: Sampled,
        request: Request,
        ranking: npt.NDArray[np.intp],
        at: float,
        luck: np.random.Generator,
    ) -> None:
        mishaps, shown_count = self._settings.mishaps, self._world.settings.shown
        shown = ranking[:shown_count]
        unshown = luck.permutation(ranking[shown_count:])[: self._settings.unshown]
        shown_at_ms = time.time_ns() // 1_000_000

        def log() -> None:
            self._producer.log_impression(
                sampled,
                [_item(candidate) for candidate in shown],
                request.scores[shown],
                unshown_scores=request.scores[unshown],
                shown_at_ms=shown_at_ms,
            )
            self._count("impressions")

        lost, repeated, held_up = luck.random(3)
        if lost < mishaps.impression_lost:
            self._count("impressions_lost")
            return
        if held_up < mishaps.impression_held_up:
            self._count("impressions_held_up")
            at += float(luck.random()) * mishaps.longest_hold_up_s
            self._later(at, log)
        else:
            self._send(log)
        if repeated < mishaps.impression_repeated:
            self._count("impressions_repeated")
            self._later(at + float(luck.random()) * mishaps.longest_repeat_s, log)

    def _react(
        self, request_id: str, outcome: Outcome, at: float, luck: np.random.Generator
    ) -> None:
        mishaps = self._settings.mishaps
        due = at + outcome.delay_s
        item = _item(outcome.candidate)
        happened_at_ms = round(time.time() * 1000 + outcome.delay_s * 1000)

        def log() -> None:
            self._producer.log_conversion(
                request_id,
                item,
                outcome.kind,
                conversion_id=f"{outcome.kind}/{item}",
                happened_at_ms=happened_at_ms,
            )
            self._count("conversions")
            self._count(outcome.kind)

        lost, repeated, again = luck.random(3)
        if lost < mishaps.conversion_lost:
            self._count("conversions_lost")
            return
        self._later(due, log)
        if repeated < mishaps.conversion_repeated:
            self._count("conversions_repeated")
            self._later(due + float(again) * mishaps.longest_repeat_s, log)

    def _later(self, at: float, send: Callable[[], None]) -> None:
        with self._lock:
            heapq.heappush(self._due, (at, next(self._order), send))

    def _send_due(self, now: float) -> None:
        while True:
            with self._lock:
                if not self._due or self._due[0][0] > now:
                    return
                _, _, send = heapq.heappop(self._due)
            self._send(send)

    def _send(self, send: Callable[[], None]) -> None:
        """Log an event; one that is refused is counted, and the traffic goes on."""
        try:
            send()
        except EventRefused:
            self._count("events_refused")

    def _totals(self, counts: Counter[str]) -> dict[str, Any]:
        return {name: counts[name] for name in _TOTALS} | {"conversions_unsent": len(self._due)}

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1
        if what in _METRICS:
            _METRICS[what].inc()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began if self._began else 0.0

    def _drifted(self, at_s: float) -> bool:
        return self._settings.drift_at_s is not None and at_s >= self._settings.drift_at_s


def _check_schema(schema: Schema) -> None:
    for what, expected, seen in (
        ("features", FEATURES, tuple(f.name for f in schema.features)),
        ("objectives", OBJECTIVES, tuple(o.name for o in schema.objectives)),
    ):
        if seen != expected:
            raise GradeError(
                f"the server's policy {schema.policy!r}: expected the marketplace's {what} "
                f"{', '.join(expected)}, seen {', '.join(seen)}"
            )


def _item(candidate: int | np.intp) -> str:
    return f"item-{candidate}"


def _percentiles(latencies: list[float]) -> dict[str, float | None]:
    if not latencies:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(latencies, (50, 99))
    return {"p50": rounded(float(p50), 3), "p99": rounded(float(p99), 3)}
