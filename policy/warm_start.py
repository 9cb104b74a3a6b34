"""Stage 1: a policy learned from logged requests, before it serves any.

The policy function is the one that stage 2 goes on learning (`policy/network.py`): a static and a
contextual part, each learned by an objective of learning to rank. By which one, for how many steps,
and how far the gate between them opens, is decided by requests that had no part in it:
cross-validation by unit. Then both are learned from all requests, as was decided.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from grade.v1.refused_pb2 import Reason

from policy.batch import Requests, posteriors
from policy.dirichlet import simplex_to_weights
from policy.errors import DataError
from policy.exploration import Exploration, evenly, fit_concentration
from policy.fusion import Floats
from policy.initial import initial_parameters
from policy.logged_fit import CONTEXTUAL, OBJECTIVES, LoggedFit, Objective, WarmStartSettings
from policy.network import PolicyNetwork, configure_torch, floored, mixed_mean
from policy.running import ContextScale, Gate
from policy.schema import Schema

MOST_ASKED: Final = 20_000
"""Held-out requests that decide, evenly spread over those there are."""
_MEASURED_TOGETHER = 256

Rows = npt.NDArray[np.intp]


class Decided(NamedTuple):
    """What a part of the mean is learned by."""

    objective: Objective
    steps: int
    """0 leaves the part as it starts: at the declared baseline."""


class WarmStart(NamedTuple):
    """A policy to start from."""

    tensors: dict[str, Floats]
    """The serving tensors by name."""
    gate: float
    """Opening of the contextual part, in [0, 1]."""
    static: Decided
    contextual: Decided
    held_out: dict[float, float]
    """Mean value of held-out requests by opening of the gate, in units of an ideal."""
    exploration: Exploration


class _Checks(NamedTuple):
    """What every objective said of held-out requests, at every check: the candidates."""

    candidates: list[Decided]
    static: Floats
    """[candidate, request, objective] logits."""
    contextual: Floats
    """[candidate, request, objective] logits."""


class _Chosen(NamedTuple):
    static: Decided
    contextual: Decided
    gate: float
    held_out: dict[float, float]


def warm_start(
    schema: Schema,
    requests: Requests,
    folds: npt.NDArray[np.intp],
    settings: WarmStartSettings,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> WarmStart:
    """Learn a policy from logged requests.

    Args:
        schema: the policy's schema.
        requests: as they were logged; gains over examination.
        folds: [request] number of the part that it is held out with, from 0 on; all requests of a
            unit in the same one.
        settings: how to learn.
        progress: told how many steps are done, and of how many.

    Returns:
        parameters whose gate and concentration are chosen, with what was decided.

    Raises:
        DataError: fewer than two of the parts have a request with an outcome.
    """
    configure_torch()
    speaking = np.flatnonzero(requests.values.any(axis=1) & (requests.present.sum(axis=1) > 1))
    spoken, fold = requests.of(speaking), folds[speaking]
    if len(np.unique(fold)) < 2:
        raise DataError(
            "expected requests with an outcome and at least 2 items from enough units for 2 "
            f"folds, seen {len(speaking)} such requests in {len(np.unique(fold))}",
            Reason.REASON_MISSING_FIELD,
        )
    start = initial_parameters(schema, settings.seed)
    start["feature_mean"], start["feature_scale"] = measured(requests.features)
    gains = spoken.values / usual_gain(schema, requests)[speaking]

    def fit(objective: Objective, rows: Rows) -> LoggedFit:
        return LoggedFit(schema, spoken.of(rows), gains[rows], start, objective, settings)

    objectives = OBJECTIVES if settings.objective == "best" else (settings.objective,)
    # At most so many: the last two fits stop where it was decided.
    total = settings.steps * (len(objectives) * len(np.unique(fold)) + 2)
    counted = _Counted(progress, total)
    asked = evenly(len(speaking), MOST_ASKED)
    checks = _ask(spoken, fold, asked, objectives, settings, fit, counted)
    chosen = _choose(schema, spoken.of(asked), gains[asked], start["mean_floor"], checks)

    tensors, everything = dict(start), np.arange(len(speaking))
    for decided, names in ((chosen.static, ("static_logits",)), (chosen.contextual, CONTEXTUAL)):
        last = fit(decided.objective, everything)
        for _ in _steps(last, decided.steps, settings.check_every, counted):
            pass
        learned = last.tensors()
        tensors |= {name: learned[name] for name in names}
    tensors["gate"] = np.array([chosen.gate])
    exploration = fit_concentration(
        spoken,
        dirichlet_mean(tensors, spoken.features),
        schema.floors(),
        budget=settings.exploration_budget,
        seed=settings.seed,
    )
    tensors["concentration_bias"] = np.array([exploration.bias])
    progress(total, total)
    return WarmStart(
        tensors, chosen.gate, chosen.static, chosen.contextual, chosen.held_out, exploration
    )


def measured(features: Floats) -> tuple[Floats, Floats]:
    """[feature] mean and [feature] scale of contexts [request, feature], as stage 2 measures."""
    scale = ContextScale(features.shape[1])
    for first in range(0, len(features), _MEASURED_TOGETHER):
        scale.add(features[first : first + _MEASURED_TOGETHER])
    return scale.mean_and_scale()


def usual_gain(schema: Schema, requests: Requests) -> Floats:
    """[request, 1] what gains are a share of: the request's ideal, or the mean ideal of all."""
    earned = requests.ideal[requests.ideal > 0]
    mean = float(earned.mean()) if earned.size else 1.0
    own = np.where(requests.ideal > 0, requests.ideal, 1.0)
    return np.asarray(own if schema.normalise == "request" else np.full(len(own), mean))[:, None]


@torch.no_grad()
def dirichlet_mean(tensors: Mapping[str, Floats], features: Floats) -> Floats:
    """[request, objective] means of the served Dirichlets for contexts [request, feature]."""
    network = PolicyNetwork(tensors)
    heads = network.heads(torch.from_numpy(features))
    return floored(mixed_mean(heads, network.get_buffer("gate")), network.least_mean).numpy()


class _Counted:
    """Adds up steps for whoever watches."""

    def __init__(self, progress: Callable[[int, int], object], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, steps: int) -> None:
        self._done += steps
        self._progress(self._done, self._total)


def _steps(fit: LoggedFit, steps: int, every: int, counted: _Counted) -> Iterator[int]:
    """Let a fit take its steps; told before the first, and after every few of them."""
    yield 0
    for done in range(every, steps + 1, every):
        fit.advance(every)
        counted.add(every)
        yield done


def _ask(
    spoken: Requests,
    fold: Rows,
    asked: Rows,
    objectives: tuple[Objective, ...],
    settings: WarmStartSettings,
    fit: Callable[[Objective, Rows], LoggedFit],
    counted: _Counted,
) -> _Checks:
    """Fit every objective once without each fold, and ask it about the fold's requests."""
    steps = range(0, settings.steps + 1, settings.check_every)
    candidates = [Decided(each, taken) for each in objectives for taken in steps]
    static, contextual = np.zeros((2, len(candidates), len(asked), spoken.signals.shape[2]))
    for part in np.unique(fold):
        held = np.flatnonzero(fold[asked] == part)
        for number, objective in enumerate(objectives):
            tried = fit(objective, np.flatnonzero(fold != part))
            taken = _steps(tried, settings.steps, settings.check_every, counted)
            for at, _ in enumerate(taken, start=number * len(steps)):
                static[at, held], contextual[at, held] = tried.logits(spoken.features[asked[held]])
    return _Checks(candidates, static, contextual)


def _choose(
    schema: Schema, requests: Requests, gains: Floats, floor: Floats, checks: _Checks
) -> _Chosen:
    """Decide by held-out requests; the gate by its rule in stage 2, `policy.running.Gate`."""
    hard, judged = schema.floors(), requests._replace(values=gains)

    def values(logits: Floats) -> Floats:
        shares = torch.softmax(torch.from_numpy(logits), dim=-1)
        mean = floored(shares, torch.from_numpy(floor)).numpy()
        return posteriors(judged, simplex_to_weights(mean[:, None, :], hard))[:, 0]

    static = int(np.argmax([values(each).mean() for each in checks.static]))
    contextual = int(np.argmax([values(each).mean() for each in checks.contextual]))
    by_opening = np.stack(
        [
            values((1 - g) * checks.static[static] + g * checks.contextual[contextual])
            for g in Gate.OPENINGS
        ],
        axis=1,
    )
    gate = Gate(half_life=float("inf"))
    gate.add(by_opening)
    return _Chosen(
        checks.candidates[static],
        checks.candidates[contextual],
        gate.opening(),
        dict(zip(Gate.OPENINGS, by_opening.mean(axis=0).tolist(), strict=True)),
    )
