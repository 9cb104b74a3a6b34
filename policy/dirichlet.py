"""The Dirichlet over fusion weights: draws, densities and divergence. numpy only.

Served weights are `floor + (1 - sum of floors) * x` with x on the simplex, shipped as float32. The
density that learning divides by is the Dirichlet density of x recomputed from the shipped weights,
so server and learner cannot disagree about what was served.
"""

import hashlib
import math
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST_COMPONENT = 1e-6
"""Components of x are kept at least so large (and renormalised) before their density is taken."""
# Arrays, as numpy takes half as long again for a number of Python's.
_LEAST = np.array(LEAST_COMPONENT)
_ONE = np.array(1.0)


def draw_generator(
    seed: int,
    policy: str,
    epoch: int,
    version: int,
    request_id: str,
    features: npt.NDArray[np.float32],
) -> np.random.Generator:
    """The random numbers of one decision: a pure function of what the decision is about.

    Args:
        seed: the server's seed.
        policy: name of the policy.
        epoch: epoch of the version that decides.
        version: the version that decides.
        request_id: the request.
        features: [feature] the context as float32.

    Returns:
        a generator keyed by blake2b over the arguments, each preceded by its length.
    """
    context = np.ascontiguousarray(features, dtype="<f4").tobytes()
    return keyed_generator(str(seed), policy, str(epoch), str(version), request_id, context.hex())


def keyed_generator(*parts: str) -> np.random.Generator:
    """A Philox generator keyed by blake2b over the parts, each preceded by its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<Q", len(encoded)))
        digest.update(encoded)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))


def draw_simplex(generator: np.random.Generator, alpha: Floats, members: int) -> Floats:
    """Draw from Dirichlets, exact down to very small alpha.

    A gamma of shape a is one of shape a + 1 times U^(1/a); taken as logarithms nothing underflows.

    Args:
        generator: source of randomness; it is consumed in the order of the result.
        alpha: [..., objective] concentration parameters, > 0.
        members: draws per Dirichlet.

    Returns:
        [..., member, objective] points of the simplex, every component at least about
        `LEAST_COMPONENT`.
    """
    shape = alpha[..., None, :]
    size = (*alpha.shape[:-1], members, alpha.shape[-1])
    gamma = generator.standard_gamma(shape + 1, size)
    return gammas_to_simplex(gamma, generator.standard_exponential(size), alpha)


def gammas_to_simplex(gamma: Floats, exponential: Floats, alpha: Floats) -> Floats:
    """Turn standard draws into draws from Dirichlets; `draw_simplex` says how.

    Args:
        gamma: [..., member, objective] standard gammas of shape alpha + 1; it is overwritten.
        exponential: [..., member, objective] standard exponentials; it is overwritten.
        alpha: [..., objective] concentration parameters, > 0.

    Returns:
        [..., member, objective] points of the simplex.
    """
    exponential /= alpha[..., None, :]
    x = np.log(gamma, out=gamma)
    x -= exponential
    x -= np.maximum.reduce(x, axis=-1, keepdims=True)
    return _inside(_normalised(np.exp(x, out=x)))


def sample_weights(
    generator: np.random.Generator, alpha: Floats, floors: Floats, members: int
) -> npt.NDArray[np.float32]:
    """Draw one request's group of fusion weights.

    Args:
        generator: source of randomness.
        alpha: [objective] concentration parameters, > 0.
        floors: [objective] least weights, summing to less than 1.
        members: weight vectors in the group.

    Returns:
        [member, objective] fusion weights as they are shipped; rows sum to 1 up to float32.
    """
    return simplex_to_weights(draw_simplex(generator, alpha, members), floors).astype(np.float32)


def simplex_to_weights(simplex: Floats, floors: Floats) -> Floats:
    """[..., objective] fusion weights of points of the simplex: floor + (1 - sum of floors) x."""
    weights: Floats = simplex * np.array(1 - math.fsum(floors.tolist()))
    weights += floors
    return weights


def weights_to_simplex(weights: npt.ArrayLike, floors: Floats) -> Floats:
    """The points of the simplex that shipped weights stand for.

    Args:
        weights: [..., objective] fusion weights, float32 as shipped.
        floors: [objective] least weights, summing to less than 1.

    Returns:
        [..., objective] float64, kept at least `LEAST_COMPONENT`, then renormalised.
    """
    x = np.array(weights, dtype=np.float64)
    x -= floors
    x /= np.array(1 - math.fsum(floors.tolist()))
    return _inside(x)


def log_density(weights: npt.ArrayLike, alpha: Floats, floors: Floats) -> Floats:
    """Natural logarithm of the Dirichlet density of shipped weights.

    Args:
        weights: [..., objective] fusion weights, float32 as shipped.
        alpha: [objective] or [..., objective] with the leading axes of `weights`.
        floors: [objective] least weights, summing to less than 1.

    Returns:
        [...] log density of x, in nats, with respect to the simplex's first M - 1 coordinates.

    >>> round(float(log_density([0.25, 0.75], np.array([2.0, 1.0]), np.zeros(2))), 4)
    -0.6931
    """
    x = weights_to_simplex(weights, floors)
    terms = np.log(x, out=x) * (alpha - _ONE)
    return np.asarray(_sum(terms) + _log_normaliser(alpha))


def kl(alpha: Floats, beta: Floats) -> Floats:
    """Kullback-Leibler divergence between Dirichlets, in closed form.

    Args:
        alpha: [..., objective] the distribution that is averaged over.
        beta: [..., objective] the one it is compared with.

    Returns:
        [...] KL(Dirichlet(alpha) || Dirichlet(beta)) in nats, >= 0.

    Reference: W. Penny, "Kullback-Leibler divergences of normal, gamma, Dirichlet and Wishart
    densities", 2001.
    """
    total = digamma(np.asarray(alpha.sum(axis=-1, keepdims=True)))
    inner = _sum((alpha - beta) * (digamma(alpha) - total))
    return np.asarray(_log_normaliser(alpha) - _log_normaliser(beta) + inner)


def digamma(x: Floats) -> Floats:
    """Derivative of log gamma, for x > 0: recurrence up to 10, then the asymptotic series.

    >>> round(float(digamma(np.array(1.0))), 10)  # minus Euler's constant
    -0.5772156649
    """
    shifted = np.array(x, dtype=np.float64)
    result = np.zeros_like(shifted)
    for _ in range(10):
        small = shifted < 10
        result -= np.where(small, 1 / shifted, 0)
        shifted = shifted + small
    inverse = 1 / (shifted * shifted)
    series = 1 / 12 - inverse * (
        1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse * (5 / 660)))
    )
    return np.asarray(result + np.log(shifted) - 0.5 / shifted - inverse * series)


def _inside(x: Floats) -> Floats:
    """Keep components at least `LEAST_COMPONENT`, in place."""
    return _normalised(np.maximum(x, _LEAST, out=x))


def _normalised(x: Floats) -> Floats:
    """Divide rows by their sums, in place."""
    x /= np.add.accumulate(x, axis=-1)[..., -1:]
    return x


def _sum(x: Floats) -> Floats:
    return np.asarray(np.add.accumulate(x, axis=-1)[..., -1])


def _log_normaliser(alpha: Floats) -> Floats:
    rows: Sequence[Sequence[float]] = alpha.reshape(-1, alpha.shape[-1]).tolist()
    return np.array([_log_normaliser_of(row) for row in rows]).reshape(alpha.shape[:-1])


def _log_normaliser_of(alpha: Sequence[float]) -> float:
    # Not `sum`: since Python 3.12 it rounds differently.
    total = log_gammas = 0.0
    for each in alpha:
        total += each
        log_gammas += math.lgamma(each)
    return math.lgamma(total) - log_gammas
