"""What a policy keeps of what it has learned when its schema changes. numpy only.

Everything goes by name: a feature keeps its column of the network, an objective its row. What is
new says nothing at first: a feature has a column of zeros, so it changes no answer before it has
been learned from; an objective starts at its baseline in every context. What it takes it takes from
all others alike, and what one leaves behind all others get alike.

The numbers are a function of the parameters and both schemas, so server and learner agree on them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from policy.initial import (
    LEAST_MEAN_FLOOR,
    MEAN_FLOOR,
    Floats,
    initial_mean,
    initial_mean_floor,
)
from policy.schema import Schema

State = dict[str, npt.NDArray[np.generic]]

# Of a softmax: below it the logarithm is not needed to be exact, only to be one.
_LEAST_SHARE = 1e-290


def adopt_parameters(
    tensors: Mapping[str, npt.NDArray[np.generic]], old: Schema, new: Schema
) -> dict[str, Floats]:
    """Serving tensors for another schema of the same policy.

    Where both have the same features and objectives, in any order, the answers stay the same. With
    other objectives the mean over those that both have keeps its proportions while the gate is
    closed; while it is open, what lies above the floors does.

    An objective's hard floor stays outside: it is the point of the simplex that is kept, not the
    weight that it stands for.

    Args:
        tensors: as `policy.initial.parameter_shapes` lists them for `old`.
        old: the schema that they were learned under.
        new: the schema that they are to be served or learned on under.

    Returns:
        copies and new tensors by name, as `parameter_shapes` lists them for `new`.
    """
    adopted = {name: np.array(tensor, dtype=np.float64) for name, tensor in tensors.items()}
    _adopt_features(adopted, old, new)
    names, others = _objectives(new), _objectives(old)
    if set(names) == set(others):
        order = [others.index(name) for name in names]
        for name in ("static_logits", "mean_weight", "mean_bias", "mean_floor"):
            adopted[name] = adopted[name][order]
    else:
        _adopt_objectives(adopted, old, new)
    return adopted


def adopt_state(
    state: Mapping[str, npt.NDArray[np.generic]],
    fresh: Mapping[str, npt.NDArray[np.generic]],
    old: Schema,
    new: Schema,
) -> State:
    """The trainer's state for another schema of the same policy, or for other settings.

    The learned, the served and the reference parameters are adopted, and the features' statistics
    go by name. What tells how far learning has come is kept: the records of gate, drift and prior,
    what is usual, and the number of slots, so that the served average goes on and does not jump to
    the latest parameters. The optimisers' moments are kept where features and objectives are the
    same, past requests where also what is made of their scores and outcomes is; else both begin
    anew.

    Args:
        state: of the trainer that has learned so far, by name.
        fresh: state of a new trainer of the new schema; its epoch is the one that is begun.
        old: the schema of `state`.
        new: the schema of `fresh`.
    """
    adopted: State = dict(fresh)
    for part in ("learned", "served", "reference"):
        tensors = adopt_parameters(_part(state, part), old, new)
        adopted |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
    for name in ("count", "mean", "squares"):
        values = np.array(fresh[f"scale.{name}"], dtype=np.float64)
        for at, before in _shared(_features(new), _features(old)):
            values[at] = state[f"scale.{name}"][before]
        adopted[f"scale.{name}"] = values
    kept = ["slots", "sharpness", "gate.", "drift.", "ideal.", "promise.", "calibration."]
    if (_features(old), _objectives(old)) == (_features(new), _objectives(new)):
        kept += ["static_adam.", "contextual_adam."]
    if _requests_mean(old) == _requests_mean(new):
        kept += ["past."]
    return adopted | {
        name: np.array(value) for name, value in state.items() if name.startswith(tuple(kept))
    }


def _adopt_features(adopted: dict[str, Floats], old: Schema, new: Schema) -> None:
    first: dict[str, Floats] = {
        "feature_mean": np.zeros(new.n_features),
        "feature_scale": np.ones(new.n_features),
        "hidden0_weight": np.zeros((len(adopted["hidden0_weight"]), new.n_features)),
    }
    for name, values in first.items():
        for at, before in _shared(_features(new), _features(old)):
            values[..., at] = adopted[name][..., before]
    adopted |= first


def _adopt_objectives(adopted: dict[str, Floats], old: Schema, new: Schema) -> None:
    """Make room for objectives that are new, and share what others have left."""
    pairs = _shared(_objectives(new), _objectives(old))
    at, before = ([pair[side] for pair in pairs] for side in (0, 1))
    start = initial_mean(new)
    start[at] = 0
    floor, floors = adopted["mean_floor"], initial_mean_floor(start)
    static = _softmax(adopted["static_logits"])
    mean = (1 - math.fsum(floor)) * static + floor
    grown = (1 - math.fsum(start)) / math.fsum(mean[before]) if pairs else 1.0
    floors[at] = np.clip(grown * floor[before], LEAST_MEAN_FLOOR, MEAN_FLOOR)
    above = start - floors
    # Not the mean less its floor: where that says next to nothing, rounding would be all of it.
    above[at] = grown * (1 - math.fsum(floor)) * static[before]
    above[at] += np.maximum(grown * floor[before] - floors[at], 0)
    logits = np.log(np.maximum(above, _LEAST_SHARE) / math.fsum(above))
    said = _logits_at_mean(adopted)
    # The contextual part keeps its logits and gets as much of the mean context as the static part.
    shift = _log_sum(logits[at]) - _log_sum(said[before]) if pairs else 0.0
    mean_weight = np.zeros((new.n_objectives, adopted["mean_weight"].shape[1]))
    mean_weight[at] = adopted["mean_weight"][before]
    mean_bias = logits.copy()
    mean_bias[at] = adopted["mean_bias"][before] + shift
    adopted |= {
        "static_logits": logits,
        "mean_weight": mean_weight,
        "mean_bias": mean_bias,
        "mean_floor": floors,
    }


def _logits_at_mean(tensors: Mapping[str, Floats]) -> Floats:
    """[objective] what the contextual part says about the mean context."""
    hidden = np.maximum(tensors["hidden0_bias"], 0)
    hidden = np.maximum(_times(tensors["hidden1_weight"], hidden) + tensors["hidden1_bias"], 0)
    return _times(tensors["mean_weight"], hidden) + tensors["mean_bias"]


def _times(weight: Floats, values: Floats) -> Floats:
    """Matrix times vector, summed in order, so that no library decides the last bit."""
    return np.asarray(np.add.accumulate(weight * values, axis=-1)[..., -1])


def _log_sum(logits: Floats) -> float:
    """Logarithm of the sum of what the logits stand for."""
    greatest = float(logits.max())
    return greatest + math.log(math.fsum(np.exp(logits - greatest)))


def _softmax(logits: Floats) -> Floats:
    shares = np.exp(logits - logits.max())
    return np.asarray(shares / math.fsum(shares))


def _shared(new: Sequence[str], old: Sequence[str]) -> list[tuple[int, int]]:
    """Places in both of the names that both have."""
    return [(at, old.index(name)) for at, name in enumerate(new) if name in old]


def _part(state: Mapping[str, npt.NDArray[np.generic]], part: str) -> State:
    prefix = part + "."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _features(schema: Schema) -> list[str]:
    return [feature.name for feature in schema.features]


def _objectives(schema: Schema) -> list[str]:
    return [objective.name for objective in schema.objectives]


def _requests_mean(schema: Schema) -> tuple[object, ...]:
    """What past requests were made by: `policy.batch.Request`."""
    signals = [
        (each.name, each.transform, each.standardise, each.predicts) for each in schema.objectives
    ]
    return schema.features, signals, schema.outcomes, schema.examination
