"""Version 0: the declared baseline as parameters, and the shape of the policy function.

The policy function is written twice, in numpy for serving and in torch for learning
(`policy/network.py`); both read these tensors and constants:

    z     = clip((x - feature_mean) / feature_scale, -CONTEXT_CLIP, CONTEXT_CLIP)
    h1    = relu(hidden0_weight z + hidden0_bias)
    h2    = relu(hidden1_weight h1 + hidden1_bias)
    m     = softmax((1 - gate) static_logits + gate (mean_weight h2 + mean_bias))
    kappa = exp(lo + (hi - lo) sigmoid(concentration_weight . h2 + concentration_bias))
    alpha = kappa ((1 - sum of mean_floor) m + mean_floor),   lo, hi = log CONCENTRATION_BOUNDS
"""

import math

import numpy as np
import numpy.typing as npt

from policy.dirichlet import keyed_generator
from policy.schema import Schema

Floats = npt.NDArray[np.float64]

HIDDEN_UNITS = 64
CONTEXT_CLIP = 4.0
"""Standardised features are kept within this distance of 0."""
LARGEST_FEATURE = 1e9
"""Greatest magnitude of a context's feature; server and join refuse what is beyond."""
LEAST_SCALE = 1e-30
"""Least scale of a feature that may be served."""
MEAN_FLOOR = 0.02
"""Share of the mean that is spread evenly, so that no alpha vanishes; an objective that starts
below twice its part of that has half its start as its floor."""
CONCENTRATION_BOUNDS = (4.0, 200.0)
"""Least and greatest sum of alpha."""
INITIAL_CONCENTRATION = 20.0
LEAST_INITIAL_MEAN = 1e-3
"""Mean at which an objective starts that the baseline gives nothing beyond its hard floor: at 0 it
could never be learned. The others keep their proportions."""

LEAST_MEAN_FLOOR = 1e-200
"""Least floor of a mean that may be served: where the network says next to nothing, alpha must stay
a number that has a logarithm and an inverse."""

# Rounding of a baseline weight less its hard floor, as a share of the weight.
_ROUNDING = 1e-14


def parameter_shapes(schema: Schema, hidden: int = HIDDEN_UNITS) -> dict[str, tuple[int, ...]]:
    """Name and shape of every serving tensor; all are float64."""
    features, objectives = schema.n_features, schema.n_objectives
    return {
        "feature_mean": (features,),
        "feature_scale": (features,),
        "static_logits": (objectives,),
        "hidden0_weight": (hidden, features),
        "hidden0_bias": (hidden,),
        "hidden1_weight": (hidden, hidden),
        "hidden1_bias": (hidden,),
        "mean_weight": (objectives, hidden),
        "mean_bias": (objectives,),
        "concentration_weight": (hidden,),
        "concentration_bias": (1,),
        "mean_floor": (objectives,),
        "gate": (1,),
    }


def initial_parameters(schema: Schema, seed: int) -> dict[str, Floats]:
    """The parameters of version 0, the same in server and learner.

    Its mean fusion weights are the schema's baseline for every context, but for objectives to which
    that gives nothing; see `initial_mean`.

    Args:
        schema: the policy's schema.
        seed: of the hidden layers' weights.

    Returns:
        tensors by name; see `parameter_shapes`.
    """
    shapes = parameter_shapes(schema)
    parameters = {name: np.zeros(shape) for name, shape in shapes.items()}
    parameters["feature_scale"] += 1
    for name in ("hidden0_weight", "hidden1_weight"):
        generator = keyed_generator("initial", str(seed), schema.policy, name)
        spread = math.sqrt(2 / shapes[name][1])
        parameters[name] = generator.standard_normal(shapes[name]) * spread
    start = initial_mean(schema)
    floors = initial_mean_floor(start)
    mean = (start - floors) / (1 - math.fsum(floors))
    logits = np.log(mean / mean.sum())
    parameters["static_logits"] = logits
    parameters["mean_bias"] = logits.copy()
    parameters["mean_floor"] = floors
    low, high = map(math.log, CONCENTRATION_BOUNDS)
    share = (math.log(INITIAL_CONCENTRATION) - low) / (high - low)
    parameters["concentration_bias"][0] = math.log(share / (1 - share))
    return parameters


def initial_mean(schema: Schema) -> Floats:
    """Where the mean of the Dirichlet starts.

    Returns:
        [objective] point of the simplex that stands for the baseline: exactly that where every
        baseline weight is above its hard floor; see `LEAST_INITIAL_MEAN` for those that are not.
    """
    floors, baseline = schema.floors(), schema.baseline()
    spare = baseline - floors
    nothing = spare <= np.maximum(_ROUNDING * baseline, 4 * LEAST_MEAN_FLOOR)
    mean = spare / (1 - math.fsum(floors))
    if nothing.any():
        left = 1 - LEAST_INITIAL_MEAN * int(nothing.sum())
        mean = np.where(nothing, LEAST_INITIAL_MEAN, mean * left / math.fsum(mean[~nothing]))
    return mean


def initial_mean_floor(start: Floats) -> Floats:
    """[objective] the least that the mean can become, from where it starts [objective]."""
    return np.minimum(MEAN_FLOOR / len(start), start / 2)
