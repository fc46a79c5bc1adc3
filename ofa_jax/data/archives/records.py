"""What the benchmark archives hold: collections of single series, labeled cases, and labeled streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ofa_jax.data.frames import Frame


@dataclass(frozen=True, eq=False)
class SeriesCollection:
    """Single series of unequal lengths that are forecast by one model.

    Attributes:
        names: The S series' names, unique, in the file's order.
        values: S arrays ``[T_s]`` float64, in original units, all finite and none empty.
        frequency: The archive's own word (``yearly``, ``Weekly``), or None where it says nothing.
        horizon: Steps H at the end of every series that the archive sets aside as its test part, or None.
        observed: S arrays ``[T_s]`` bool, False where a missing value was filled; None without any.
        source: Where the values come from, for messages.
        notices: What reading inferred, one line each, for the user.
        times: ``times(s, count)``: the times ``[count]`` of the first steps of series s, datetime64, also of
            steps beyond its end; None without any.
    """

    names: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    frequency: str | None
    horizon: int | None
    observed: tuple[np.ndarray, ...] | None
    source: str
    notices: tuple[str, ...] = ()
    times: Callable[[int, int], np.ndarray] | None = None

    @classmethod
    def of(cls, frame: Frame) -> SeriesCollection:
        """The columns of a table, with its times where those of the steps after it are known."""
        columns = tuple(np.ascontiguousarray(column) for column in frame.values.T)
        observed = None if frame.observed is None else tuple(np.ascontiguousarray(frame.observed.T))

        def times(_: int, count: int) -> np.ndarray:
            after, rows = count - frame.n_rows, frame.local_times()[:count]
            return np.concatenate([rows, frame.local_times(after)]) if after > 0 else rows

        found = times if frame.dated else None
        return cls(frame.names, columns, frame.frequency, None, observed, frame.source, times=found)

    @property
    def n_series(self) -> int:
        """Number of series S."""
        return len(self.names)

    @cached_property
    def lengths(self) -> np.ndarray:
        """``[S]`` int64, the steps T_s of each series."""
        return np.array([len(series) for series in self.values], np.int64)


@dataclass(frozen=True, eq=False)
class LabelledCases:
    """Cases of one or several channels, each with a class.

    Attributes:
        cases: N arrays ``[T_i, C]`` float64, all finite and none empty.
        labels: ``[N]`` the class of each case, as the archive writes it.
        classes: The K classes in the header's order; a file need not hold a case of each.
        observed: N arrays ``[T_i, C]`` bool, False where a missing value was filled; None without any.
        source: Where the values come from, for messages.
        notices: What reading inferred, one line each, for the user.
        names: ``[N]`` what the source calls the cases; None where it only has their order.
    """

    cases: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    observed: tuple[np.ndarray, ...] | None
    source: str
    notices: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None

    @property
    def n_cases(self) -> int:
        """Number of cases N."""
        return len(self.cases)

    @property
    def n_channels(self) -> int:
        """Number of channels C."""
        return int(self.cases[0].shape[1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """``[N]`` int64, the steps T_i of each case."""
        return np.array([len(case) for case in self.cases], np.int64)

    def take(self, chosen: np.ndarray) -> LabelledCases:
        """The cases at some positions."""
        at = chosen.tolist()

        def of(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[index] for index in at)

        return replace(
            self,
            cases=tuple(self.cases[index] for index in at),
            labels=tuple(self.labels[index] for index in at),
            observed=of(self.observed),
            names=of(self.names),
        )


@dataclass(frozen=True, eq=False)
class LabelledStream:
    """A training stream without labels and a test stream with a label per step.

    Either may be several recordings laid end to end, the segments; windows should not cross borders.

    Attributes:
        train: ``[T_train, C]`` float64, all finite.
        test: ``[T_test, C]`` float64, all finite.
        test_label: ``[T_test]`` bool, True where the step is anomalous.
        segments: The S segments' names, unique.
        train_borders: ``[S + 1]`` int64; segment s begins at row ``train_borders[s]``, the next one ends it.
        test_borders: As ``train_borders``, of the test stream.
        source: Where the values come from, for messages.
    """

    train: np.ndarray
    test: np.ndarray
    test_label: np.ndarray
    segments: tuple[str, ...]
    train_borders: np.ndarray
    test_borders: np.ndarray
    source: str

    @property
    def n_channels(self) -> int:
        """Number of channels C."""
        return int(self.train.shape[1])

    @property
    def anomaly_ratio(self) -> float:
        """Share of the test steps that are anomalous, 0 to 1."""
        return float(self.test_label.mean())
