"""Worlds made of the logged requests of a data folder: what was shown is given.

A method's weights do not change what users see, only how it is judged. In the semi-real world the
outcomes come from a planted truth; in the real one nobody knows it.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.learning.world import Worth
from evaluation.data_folder import DataFolder
from evaluation.semi_real import EXAMINATION, SemiReal
from evaluation.yardsticks import Lists, lists_of
from policy.batch import Requests
from policy.fusion import Floats, fuse, rank
from policy.rewards import discounted, examination, expected_values, ideal
from policy.schema import Schema

STATIC_TRIED: Final = 400
"""How many weights the best static ones of the semi-real world are searched among."""


class LoggedBlock(NamedTuple):
    """Some logged requests."""

    rows: npt.NDArray[np.intp]
    """[request] where they are in the folder."""
    features: Floats
    """[request, feature]"""


class Logged:
    """The requests of a folder in the order of their file.

    Args:
        folder: the requests.
        schema: its policy.
        curve: [position] chance that a position is looked at, which gains are divided by.
    """

    def __init__(self, folder: DataFolder, schema: Schema, curve: Floats) -> None:
        self.schema = schema
        self.examination = curve
        self.lists: Lists = lists_of(folder, schema)
        self._features = folder.features.astype(np.float64)
        shown = self.lists.shown
        predicted = np.zeros(shown.shape)
        predicted[shown] = expected_values(schema, folder.scores.astype(np.float64))
        self._predicted = predicted
        position = np.minimum(self.lists.positions, len(curve) - 1)
        self._looked_at: Floats = curve[position]
        self._values: Floats = self.lists.gains / self._looked_at

    def __len__(self) -> int:
        return len(self._features)

    def block(self, first: int, count: int) -> LoggedBlock:
        """Requests from a number on; fewer at the end of the folder."""
        rows = np.arange(first, min(first + count, len(self)))
        return LoggedBlock(rows, self._features[rows])

    def show(self, block: LoggedBlock, weights: Floats) -> Requests:
        """What was logged, whatever the weights."""
        rows, values = block.rows, self._values[block.rows]
        return Requests(
            features=block.features,
            signals=self.lists.signals[rows],
            values=values,
            predicted=self._predicted[rows],
            examination=self._looked_at[rows],
            present=self.lists.shown[rows],
            ideal=ideal(values),
        )

    def order(self, block: LoggedBlock, weights: Floats) -> npt.NDArray[np.intp]:
        """[request, item] the items as weights [request, objective] rank them, padding last."""
        fused = fuse(weights[:, None, :], self.lists.signals[block.rows])[:, 0]
        return rank(np.where(self.lists.shown[block.rows], fused, -np.inf))


def kuairand_world(folder: DataFolder, schema: Schema) -> Logged:
    """The folder as it is, with the schema's own examination curve."""
    return Logged(folder, schema, np.array(examination(schema, len(schema.examination) or 1)))


class SemiRealWorld(Logged):
    """Real covariates, planted truth; values are discounted expected gains of the logged items.

    The oracle is the ranking by the planted weights: the best that any weights can do. An item's
    own noise, which no score tells, can be reached by nobody. The probes are the requests from
    number `LEARNED` on.

    Args:
        planted: the world.
        schema: the folder's policy.
    """

    LEARNED = 6_016
    """Requests that may be learned from: 94 blocks of 64."""

    def __init__(self, planted: SemiReal, schema: Schema) -> None:
        super().__init__(planted.folder, schema, np.array(schema.examination or EXAMINATION))
        self._expected = np.zeros(self.lists.shown.shape)
        self._expected[self.lists.shown] = planted.gains
        self._weights = planted.weights
        self._worth: Worth | None = None

    def probes(self, at: int) -> LoggedBlock:
        """The requests that are not learned from; time changes nothing."""
        return self.block(self.LEARNED, len(self) - self.LEARNED)

    def value(self, block: LoggedBlock, weights: Floats) -> Floats:
        """[request] discounted expected gain, in gain units."""
        return discounted(self._expected[block.rows], self.order(block, weights))

    def worth(self, at: int) -> Worth:
        """What is compared with; the oracle's weights are those of the truth."""
        if self._worth is None:
            probes = self.probes(at)
            equal = np.full((len(probes.rows), self.schema.n_objectives), 1.0)
            uniform = float(self.value(probes, equal / self.schema.n_objectives).mean())
            truth = float(self.value(probes, self._weights[probes.rows]).mean())
            self._worth = Worth(uniform, truth, truth)
        return self._worth

    def best_static(self, first: int, end: int) -> Floats:
        """[objective] the best by true value of `STATIC_TRIED` weights, uniform on the simplex."""
        block, objectives = self.block(first, end - first), self.schema.n_objectives
        tried = np.random.default_rng(0).dirichlet(np.ones(objectives), STATIC_TRIED)
        values = [self.value(block, np.tile(each, (len(block.rows), 1))).mean() for each in tried]
        return np.asarray(tried[int(np.argmax(values))])
