"""Which epoch becomes the best."""

from __future__ import annotations

import pytest

from ofa_jax.train.lanes import Lane, Progress


@pytest.mark.parametrize(
    ("best", "best_epoch", "objective", "better"),
    [
        (None, 0, 9.0, True),  # the first epoch of a run whose initial tree was not validated
        (1.0, 0, 0.99, False),  # the initial tree stays unless an epoch is better by two per cent
        (1.0, 0, 0.97, True),
        (1.0, 3, 0.99, True),
        (1.0, 3, 1.0, False),
    ],
)
def test_the_initial_tree_gives_way_to_a_clear_gain_and_later_ones_to_any(
    best, best_epoch, objective, better
):
    lane = Lane({}, seed=0, progress=Progress(best=best, best_epoch=best_epoch))
    assert lane.improves(objective, 0.02) is better
