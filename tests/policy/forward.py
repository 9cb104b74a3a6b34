"""The policy function of `policy/initial.py`, written from its formula one request at a time."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from policy.initial import CONCENTRATION_BOUNDS, CONTEXT_CLIP

Floats = npt.NDArray[np.float64]


def forward(parameters: Mapping[str, Floats], features: npt.ArrayLike) -> Floats:
    """[request, objective] alpha of contexts [request, feature]."""
    return np.array([_alpha(parameters, row) for row in np.asarray(features, dtype=np.float64)])


def _alpha(p: Mapping[str, Floats], x: Floats) -> list[float]:
    z = [
        min(max((value - mean) / scale, -CONTEXT_CLIP), CONTEXT_CLIP)
        for value, mean, scale in zip(x, p["feature_mean"], p["feature_scale"], strict=True)
    ]
    h1 = [
        max(0.0, _dot(w, z) + b)
        for w, b in zip(p["hidden0_weight"], p["hidden0_bias"], strict=True)
    ]
    h2 = [
        max(0.0, _dot(w, h1) + b)
        for w, b in zip(p["hidden1_weight"], p["hidden1_bias"], strict=True)
    ]
    gate = float(p["gate"][0])
    logits = [
        (1 - gate) * static + gate * (_dot(w, h2) + b)
        for static, w, b in zip(p["static_logits"], p["mean_weight"], p["mean_bias"], strict=True)
    ]
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    mean = [e / math.fsum(exponentials) for e in exponentials]
    level = _dot(p["concentration_weight"], h2) + float(p["concentration_bias"][0])
    low, high = map(math.log, CONCENTRATION_BOUNDS)
    concentration = math.exp(low + (high - low) / (1 + math.exp(-level)))
    floors = [float(each) for each in p["mean_floor"]]
    share = 1 - math.fsum(floors)
    return [concentration * (share * m + f) for m, f in zip(mean, floors, strict=True)]


def _dot(weights: Floats, values: list[float]) -> float:
    return math.fsum(float(w) * v for w, v in zip(weights, values, strict=True))


def forward_batch(p: Mapping[str, Floats], x: Floats) -> Floats:
    """The same for many requests [request, feature], where speed counts."""
    z = np.clip((x - p["feature_mean"]) / p["feature_scale"], -CONTEXT_CLIP, CONTEXT_CLIP)
    h1 = np.maximum(z @ p["hidden0_weight"].T + p["hidden0_bias"], 0)
    h2 = np.maximum(h1 @ p["hidden1_weight"].T + p["hidden1_bias"], 0)
    contextual = h2 @ p["mean_weight"].T + p["mean_bias"]
    logits = (1 - p["gate"]) * p["static_logits"] + p["gate"] * contextual
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    mean = exponentials / exponentials.sum(axis=-1, keepdims=True)
    low, high = map(math.log, CONCENTRATION_BOUNDS)
    level = h2 @ p["concentration_weight"] + p["concentration_bias"]
    concentration = np.exp(low + (high - low) / (1 + np.exp(-level)))
    floored = (1 - p["mean_floor"].sum()) * mean + p["mean_floor"]
    return np.asarray(concentration[:, None] * floored)
