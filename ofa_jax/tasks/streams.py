"""What anomaly detection reads: labeled streams, or a table whose first rows are taken as normal."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ofa_jax.config.tasks import READING, DataConfig
from ofa_jax.data.archives import LabelledStream
from ofa_jax.data.cases import names_table
from ofa_jax.data.catalog.load import CATALOG, load, load_streams
from ofa_jax.data.frames import Frame
from ofa_jax.data.missing import filled_notices
from ofa_jax.data.splits import CHANNEL_NAME, borders
from ofa_jax.errors import ConfigError, DataError, listed

VALIDATION_SHARE = 0.2
"""Of the training stream, at its end, as in the published SMD code (protocol §5 row 5)."""

_OF_TABLES = (*READING, "label_column", "ratios")


@dataclass(frozen=True, eq=False)
class Recording:
    """A training stream and a test stream, and what is known of them.

    Attributes:
        stream: Their values; ``test_label`` has no meaning without ``labelled``.
        names: The C channels' names.
        cut: The step of the training stream that validation begins at.
        labelled: Whether the test stream has labels.
        frame: The table that they are from; None of streams.
        notices: Messages for the user, one line each.
    """

    stream: LabelledStream
    names: tuple[str, ...]
    cut: int
    labelled: bool = True
    frame: Frame | None = None
    notices: tuple[str, ...] = ()

    @property
    def observed(self) -> np.ndarray | None:
        """``[T_train + T_test, C]``, False where a missing value was filled; None without any."""
        return None if self.frame is None else self.frame.observed


def read_recording(data: DataConfig) -> Recording:
    """The streams that the settings name.

    Raises:
        ConfigError: ``data.parts`` is empty, names a part twice, or is given for a file outside the catalog;
            a setting of tables is given for streams.
        DataError: The streams or the table cannot be read.
    """
    if names_table(data.source):
        return _of_table(data)
    _check_parts(data)
    stream = _joined(load_streams(data.source, only=data.parts)[0])
    given = [name for name in _OF_TABLES if getattr(data, name) != DataConfig.model_fields[name].default]
    if given:
        what = f"{data.source} has labeled streams, which are not read by data.{given[0]}"
        raise ConfigError(what, where=f"data.{given[0]}", fix="Leave it out")
    names = tuple(CHANNEL_NAME.format(index) for index in range(stream.n_channels))
    return Recording(stream, names, int(len(stream.train) * (1 - VALIDATION_SHARE)))


def _of_table(data: DataConfig) -> Recording:
    """The first rows of a table train and validate, the last ones test, by ``data.ratios``."""
    _check_parts(data)
    label, columns = data.label_column, data.columns
    if label is not None and columns is not None:
        columns = (*(name for name in columns if name != label), label)
    reading = data.reading | ({"columns": columns} if columns else {}) | ({"labels": label} if label else {})
    frame, _ = load(data.source, **reading)
    frame, anomalous = (frame, None) if label is None else _without(frame, label)
    parts = borders(frame.n_rows, "ratio", input_length=0, ratios=data.ratios, source=frame.source)
    begin = parts["test"][0]
    none = np.zeros(frame.n_rows - begin, bool)
    stream = LabelledStream(
        train=frame.values[:begin],
        test=frame.values[begin:],
        test_label=none if anomalous is None else anomalous[begin:],
        segments=("rows",),
        train_borders=np.array([0, begin]),
        test_borders=np.array([0, len(none)]),
        source=frame.source,
    )
    notices = [*frame.notices, *filled_notices(frame.observed, frame.source)]
    if anomalous is not None:
        marked, seen = int(anomalous.sum()), int(anomalous[:begin].sum())
        text = f"labels in `{label}`: {marked:,} of {frame.n_rows:,} rows are anomalous"
        notices.append(f"{text}, {seen:,} of them among those that are taken as normal" if seen else text)
    return Recording(stream, frame.names, parts["train"][1], anomalous is not None, frame, tuple(notices))


def _without(frame: Frame, label: str) -> tuple[Frame, np.ndarray]:
    """The frame without its column of labels, and these, ``[T]`` bool.

    Raises:
        DataError: There is no such column, or none besides; a label is neither 0 nor 1.
    """
    if any(name.endswith(f" {label}") for name in frame.names):
        what, fix = "the labels of a long table are not read", "Give a row per time and a column per series"
        raise DataError(what, where=frame.source, fix=fix)
    if label not in frame.names:
        what, fix = f"there is no column `{label}`", f"Set data.label_column to one of {listed(frame.names)}"
        raise DataError(what, where=frame.source, fix=fix)
    at = frame.names.index(label)
    found, where = frame.values[:, at], f"{frame.source}, column `{label}`"
    known = np.ones(frame.n_rows, bool) if frame.observed is None else frame.observed[:, at]
    wrong = np.flatnonzero(~known | ((found != 0) & (found != 1)))
    if len(wrong):
        what = f"the label in row {wrong[0] + 1} is neither 0 nor 1"
        raise DataError(what, where=where, fix="Write 1 for anomalous, else 0")
    names = frame.names[:at] + frame.names[at + 1 :]
    if not names:
        raise DataError("there are labels and no series", where=frame.source, fix="Give at least one series")
    observed = None if frame.observed is None else np.delete(frame.observed, at, axis=1)
    values = np.delete(frame.values, at, axis=1)
    return dataclasses.replace(frame, values=values, names=names, observed=observed), found == 1


def _check_parts(data: DataConfig) -> None:
    parts = data.parts
    if parts is None:
        return
    if data.source not in CATALOG:
        what = f"{data.source} is not in the catalog and has no parts to choose from"
        raise ConfigError(what, where="data.parts", fix="Leave data.parts out")
    if not parts or len(set(parts)) < len(parts):
        what = "names a part twice" if parts else "names no part"
        raise ConfigError(what, where="data.parts", fix="Name each part once, or leave data.parts out")


def _joined(streams: tuple[LabelledStream, ...]) -> LabelledStream:
    """Several machines' streams end to end, as the published sets treat them."""
    if len(streams) == 1:
        return streams[0]

    def end_to_end(parts: list[np.ndarray]) -> np.ndarray:
        return np.cumsum(np.concatenate([[0], *map(np.diff, parts)]))

    names = [name for stream in streams for name in stream.segments]
    if len(set(names)) < len(names):
        names = [f"{number}/{name}" for number, stream in enumerate(streams, 1) for name in stream.segments]
    return LabelledStream(
        train=np.concatenate([stream.train for stream in streams]),
        test=np.concatenate([stream.test for stream in streams]),
        test_label=np.concatenate([stream.test_label for stream in streams]),
        segments=tuple(names),
        train_borders=end_to_end([stream.train_borders for stream in streams]),
        test_borders=end_to_end([stream.test_borders for stream in streams]),
        source=f"{streams[0].source} and {len(streams) - 1} other(s)",
    )
