"""Stage 1: a policy learned from logged requests, before it serves any.

The policy function is the one that stage 2 goes on learning (`policy/network.py`): a static and a
contextual part, each learned on its own by one objective of learning to rank. How long each is
learned, and how far the gate between them opens, is decided by requests that had no part in it:
cross-validation by unit. Then both are learned from all requests, as long as was decided.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from grade.v1.refused_pb2 import Reason

from policy.batch import Requests, posteriors
from policy.dirichlet import simplex_to_weights
from policy.errors import DataError
from policy.exploration import Exploration, fit_concentration
from policy.fusion import Floats
from policy.initial import initial_parameters
from policy.logged_fit import CONTEXTUAL, LoggedFit, WarmStartSettings
from policy.network import PolicyNetwork, configure_torch, floored, mixed_mean
from policy.running import ContextScale, Gate
from policy.schema import Schema

_MEASURED_TOGETHER = 256


class WarmStart(NamedTuple):
    """A policy to start from."""

    tensors: dict[str, Floats]
    """The serving tensors by name."""
    gate: float
    """Opening of the contextual part, in [0, 1]."""
    static_steps: int
    """Steps that the static part was learned; 0 leaves it at the declared baseline."""
    contextual_steps: int
    held_out: dict[float, float]
    """Mean value of held-out requests by opening of the gate, in units of an ideal."""
    exploration: Exploration


class _Checks(NamedTuple):
    """What a fit said of held-out requests, at every check."""

    static: Floats
    """[check, request, objective] logits."""
    contextual: Floats
    """[check, request, objective] logits."""


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
    spoken, fold = requests.at(speaking), folds[speaking]
    if len(np.unique(fold)) < 2:
        raise DataError(
            "expected requests with an outcome and at least 2 items from enough units for 2 "
            f"folds, seen {len(speaking)} such requests in {len(np.unique(fold))}",
            Reason.REASON_MISSING_FIELD,
        )
    start = initial_parameters(schema, settings.seed)
    start["feature_mean"], start["feature_scale"] = measured(requests.features)
    gains = spoken.values / usual_gain(schema, requests)[speaking]
    parts = np.unique(fold)
    total = settings.steps * (len(parts) + 1)

    shape = (settings.steps // settings.check_every + 1, len(speaking), schema.n_objectives)
    checks = _Checks(np.zeros(shape), np.zeros(shape))
    for number, part in enumerate(parts):
        rows, held = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        fit = LoggedFit(schema, spoken.at(rows), gains[rows], start, settings)
        for check in range(shape[0]):
            checks.static[check, held], checks.contextual[check, held] = fit.logits(
                spoken.features[held]
            )
            if check + 1 < shape[0]:
                fit.advance(settings.check_every)
            progress(number * settings.steps + check * settings.check_every, total)
    chosen = _choose(schema, spoken, gains, start["mean_floor"], checks)

    tensors = dict(start)
    fit = LoggedFit(schema, spoken, gains, start, settings)
    for check in range(max(chosen.static, chosen.contextual) + 1):
        learned = fit.tensors()
        if check == chosen.static:
            tensors["static_logits"] = learned["static_logits"]
        if check == chosen.contextual:
            tensors |= {name: learned[name] for name in CONTEXTUAL}
        if check < max(chosen.static, chosen.contextual):
            fit.advance(settings.check_every)
        progress(len(parts) * settings.steps + check * settings.check_every, total)
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
        tensors,
        chosen.gate,
        chosen.static * settings.check_every,
        chosen.contextual * settings.check_every,
        chosen.held_out,
        exploration,
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
def dirichlet_mean(tensors: dict[str, Floats], features: Floats) -> Floats:
    """[request, objective] means of the served Dirichlets for contexts [request, feature]."""
    network = PolicyNetwork(tensors)
    heads = network.heads(torch.from_numpy(features))
    return floored(mixed_mean(heads, network.get_buffer("gate")), network.least_mean).numpy()


class _Chosen(NamedTuple):
    static: int
    """Check at which the static part did best."""
    contextual: int
    gate: float
    held_out: dict[float, float]


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
    held_out = dict(zip(Gate.OPENINGS, by_opening.mean(axis=0).tolist(), strict=True))
    return _Chosen(static, contextual, gate.opening(), held_out)
