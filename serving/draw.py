"""Drawing the groups of many requests at once, each from a generator of its own.

The numbers are those of `policy.dirichlet.sample_weights(draw_generator(...), ...)`, byte for byte
(a test holds it). Only the cost differs: what all requests of a version have in common is hashed
once, generators are rekeyed instead of made (which asks the operating system for entropy), and
only the raw numbers are drawn request by request.
"""

import hashlib
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.dirichlet import gammas_to_simplex

Floats = npt.NDArray[np.float64]

_thread = threading.local()


class DrawKey:
    """What the draws of one version have in common.

    Args:
        seed: the server's seed.
        policy: name of the policy.
        epoch: epoch of the version.
        version: the version.
    """

    def __init__(self, seed: int, policy: str, epoch: int, version: int) -> None:
        self._common = hashlib.blake2b(digest_size=16)
        for part in (str(seed), policy, str(epoch), str(version)):
            self._common.update(_length_prefixed(part.encode()))

    def generator(self, request_id: bytes, features: bytes) -> np.random.Generator:
        """The generator of one request; it is this thread's, valid until the next call.

        Args:
            request_id: the request, as UTF-8.
            features: the context, as the hexadecimal digits of little-endian float32 numbers.
        """
        digest = self._common.copy()
        digest.update(_length_prefixed(request_id))
        digest.update(_length_prefixed(features))
        return _keyed(digest.digest())


def draw_simplices(
    key: DrawKey,
    request_ids: Sequence[bytes],
    features: npt.NDArray[np.float32],
    alpha: Floats,
    members: int,
) -> Floats:
    """Draw every request's group.

    Args:
        key: the version's.
        request_ids: [request] as UTF-8.
        features: [request, feature] the contexts.
        alpha: [request, objective] concentration parameters, > 0.
        members: members of a group.

    Returns:
        [request, member, objective] points of the simplex.
    """
    group = (members, alpha.shape[-1])
    gamma = np.empty((len(request_ids), *group))
    exponential = np.empty_like(gamma)
    shifted = alpha + 1.0
    digits = features.astype("<f4", copy=False).tobytes().hex().encode()
    width = 8 * features.shape[-1]
    for row, request_id in enumerate(request_ids):
        generator = key.generator(request_id, digits[row * width : (row + 1) * width])
        gamma[row] = generator.standard_gamma(shifted[row], group)
        generator.standard_exponential(out=exponential[row])
    return gammas_to_simplex(gamma, exponential, alpha)


def _length_prefixed(part: bytes) -> bytes:
    return struct.pack("<Q", len(part)) + part


def _keyed(digest: bytes) -> np.random.Generator:
    generator: np.random.Generator | None = getattr(_thread, "generator", None)
    if generator is None:
        generator = _thread.generator = np.random.Generator(np.random.Philox(key=0))
        _thread.state = generator.bit_generator.state
    state: dict[str, Any] = _thread.state
    state["state"]["key"] = np.frombuffer(digest, dtype="<u8")
    generator.bit_generator.state = state
    return generator
