"""The one global order of batches."""

from __future__ import annotations

from itertools import repeat

import numpy as np

from ofa_jax.errors import DataError
from ofa_jax.windows.table import PADDING


class IndexStream:
    """The order in which all processes see the windows: shuffled per epoch, cut into batches, repeated.

    Batches are numbered from 0 through all epochs, so a position is one integer; no batch crosses an epoch.
    The order is grain's index shuffle, a seeded permutation with random access (its pipeline over a range
    costs three times as much per window, which shows with a small network).

    Args:
        windows: Number of windows in the table.
        batch_size: Windows per batch; an epoch's last batch is padded with :data:`PADDING`.
        seed: Seed of the order, 0 to 2**32 - 1; every epoch has a different order. None keeps the table's.
        drop_last: Leave out an epoch's partial last batch, as published code does (protocol §3).
        groups: ``[groups + 1]``: borders of groups of rows, from 0 to ``windows``; every epoch sees one row
            per group, drawn by seed, epoch and group alone. None makes every row a group.

    Raises:
        DataError: There are too few windows for one batch.

    Attributes:
        windows: Windows that one epoch sees.
    """

    def __init__(
        self,
        windows: int,
        batch_size: int,
        *,
        seed: int | None,
        drop_last: bool = False,
        groups: np.ndarray | None = None,
    ) -> None:
        count = windows if groups is None else len(groups) - 1
        self.steps_per_epoch = count // batch_size if drop_last else -(-count // batch_size)
        if self.steps_per_epoch < 1:
            fix = "Use a smaller train.batch_size, or protocol: strict" if drop_last else None
            raise DataError(f"{count} windows in batches of {batch_size} make no batch", fix=fix)
        self.windows = self.steps_per_epoch * batch_size if drop_last else count
        self.batch_size = batch_size
        self._count, self._seed, self._groups = count, seed, groups
        self._prepared: tuple[int, int, np.ndarray] | None = None
        self._drawn: tuple[int, np.ndarray] | None = None

    def batches(self, start: int, stop: int) -> np.ndarray:
        """Batches ``start`` … ``stop - 1`` as ``[stop - start, batch_size]`` int32."""
        if self._prepared is not None and self._prepared[0] == start and stop <= self._prepared[1]:
            return self._prepared[2][: stop - start]
        index = np.full((stop - start, self.batch_size), PADDING, np.int32)
        for row, position in enumerate(range(start, stop)):
            epoch, number = divmod(position, self.steps_per_epoch)
            first = number * self.batch_size
            batch = self._order(epoch, first, min(first + self.batch_size, self._count))
            if self._groups is not None:
                batch = self._members(epoch)[batch]
            index[row, : len(batch)] = batch
        return index

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows (or groups) ``start`` … ``stop - 1`` of an epoch's order."""
        if self._seed is None:
            return np.arange(start, stop)
        from grain.experimental import index_shuffle

        # neighboring seeds share no epoch's order
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        places = map(index_shuffle, range(start, stop), repeat(self._count - 1), repeat(seed), repeat(4))
        return np.fromiter(places, np.int32, stop - start)

    def prepare(self, start: int, stop: int) -> None:
        """Make :meth:`batches` from ``start`` on ready, which takes a microsecond or two a window."""
        self._prepared = (start, stop, self.batches(start, stop))

    def _members(self, epoch: int) -> np.ndarray:
        """The row that each group shows in an epoch."""
        assert self._groups is not None
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.Philox(key=np.array([self._seed or 0, epoch], np.uint64))
            raw = generator.random_raw(len(self._groups) - 1)
            sizes = np.diff(self._groups).astype(np.uint64)
            self._drawn = (epoch, self._groups[:-1] + (raw % sizes).astype(np.int64))
        return self._drawn[1]
