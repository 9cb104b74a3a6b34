import numpy as np
import pytest

from benchmarks.learning.tastes import SALES, conflicts_of, tastes_of
from simulator.marketplace import CONFLICTS, TASTES


def test_five_objectives_are_the_marketplaces() -> None:
    np.testing.assert_allclose(tastes_of(5), TASTES, atol=1e-12)
    np.testing.assert_array_equal(conflicts_of(5), CONFLICTS)


@pytest.mark.parametrize("objectives", [2, 3, 6, 12])
def test_any_number_of_objectives_has_tastes_and_conflicts(objectives: int) -> None:
    tastes, conflicts = tastes_of(objectives), conflicts_of(objectives)
    assert tastes.shape == (4, objectives)
    assert tastes.min() > 0
    np.testing.assert_allclose(tastes.sum(axis=1), 1)
    assert tastes[:, SALES].min() > 0.35
    np.testing.assert_allclose(np.diag(conflicts), 1)
    np.testing.assert_array_equal(conflicts, conflicts.T)
    np.linalg.cholesky(conflicts)  # refuses what is no correlation
