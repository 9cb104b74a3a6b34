"""Several server processes seen as one: their health, swaps and metrics on one admin port."""

import urllib.request
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from monitor.watch import ask

_TIMEOUT_S = 2.0

State = dict[str, Any]


class WorkersView(Collector):
    """Asks every worker, whenever somebody asks.

    Args:
        files: by name of the worker, the file that has its admin port while it runs.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def health(self) -> State:
        """What an operator wants to know, as JSON.

        `status` is "ok" if it is so for every worker. `policies` has for each policy the state of
        the worker that is furthest behind, `workers` what each worker says, with its admin port.
        """
        workers = {name: self._ask(name, "/health") for name in self._files}
        wrong = [each["status"] for each in workers.values() if each["status"] != "ok"]
        policies: dict[str, State] = {}
        for each in workers.values():
            for policy, state in each.get("policies", {}).items():
                if policy not in policies or _order(state) < _order(policies[policy]):
                    policies[policy] = state
        only = next(iter(policies.values())) if len(policies) == 1 else {}
        status = wrong[0] if wrong else "ok"
        return {"status": status, **only, "policies": policies, "workers": workers}

    def swaps(self) -> list[State]:
        """For each version that all workers have reached: when the last one did, oldest first."""
        answers = [self._ask(name, "/swaps", []) for name in self._files]
        swaps = _by_policy([swap for answer in answers for swap in answer])
        reached: list[State] = []
        for policy, versions in swaps.items():
            workers = [_by_policy(answer).get(policy, []) for answer in answers]
            reached += _reached_by_all(versions, workers)
        return sorted(reached, key=lambda swap: float(swap["wall_ms"]))

    def collect(self) -> Iterator[Metric]:
        """All workers' metrics, each with the label `worker`."""
        families: dict[str, Metric] = {}
        for name in self._files:
            for family in text_string_to_metric_families(self._metrics(name)):
                whole = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                whole.samples += [_of_worker(sample, name) for sample in family.samples]
        yield from families.values()

    def _port(self, name: str) -> int | None:
        try:
            return int(self._files[name].read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _ask(self, name: str, path: str, otherwise: Any = None) -> Any:
        port = self._port(name)
        answer = None if port is None else ask(port, path, _TIMEOUT_S)
        if otherwise is not None:
            return otherwise if answer is None else answer
        return {**(answer or {"status": "away"}), "admin_port": port}

    def _metrics(self, name: str) -> str:
        port = self._port(name)
        if port is None:
            return ""
        try:
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""


def _order(state: State) -> tuple[int, int]:
    return state["epoch"], state["version"]


def _by_policy(swaps: list[State]) -> dict[str, list[State]]:
    """Swaps by policy, in rising order of their versions."""
    found: dict[str, list[State]] = {}
    for swap in sorted(swaps, key=_order):
        found.setdefault(swap["policy"], []).append(swap)
    return found


def _reached_by_all(versions: list[State], workers: list[list[State]]) -> Iterator[State]:
    for order, swap in {_order(swap): swap for swap in versions}.items():
        walls = []
        for swapped in workers:
            # A worker that has skipped it has reached it with its next one.
            place = bisect_left(swapped, order, key=_order)
            if place == len(swapped):
                break
            walls.append(swapped[place]["wall_ms"])
        else:
            yield {**swap, "wall_ms": max(walls)}


def _of_worker(sample: Sample, worker: str) -> Sample:
    return sample._replace(labels={**sample.labels, "worker": worker})
