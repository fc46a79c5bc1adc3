"""Benchmark file formats, each read into a record of NumPy arrays or refused with file, line and reason.

| reader | format | record |
|---|---|---|
| :func:`read_tsf` | Monash ``.tsf`` | :class:`SeriesCollection` |
| :func:`read_m4` | the training and test parts of M4 | :class:`SeriesCollection` |
| :func:`read_m4_part` | one part of M4, or submitted forecasts | :class:`SeriesCollection` |
| :func:`read_m4_info` | the table of the M4 series | dict: horizon and frequency by series |
| :func:`read_ts` | UEA ``.ts`` | :class:`LabelledCases` |
| :func:`read_stream` | ``.npz`` of a labeled stream | :class:`LabelledStream` |

All but the last read ``.gz`` as well. Nothing is dropped: what a reader does not understand is an error,
and so are missing values unless the caller says how to fill them.
"""

from ofa_jax.data.archives.m4 import read_m4, read_m4_info, read_m4_part
from ofa_jax.data.archives.npz import read_stream, write_stream
from ofa_jax.data.archives.records import LabelledCases, LabelledStream, SeriesCollection
from ofa_jax.data.archives.ts import read_ts
from ofa_jax.data.archives.tsf import read_tsf

__all__ = [
    "LabelledCases",
    "LabelledStream",
    "SeriesCollection",
    "read_m4",
    "read_m4_info",
    "read_m4_part",
    "read_stream",
    "read_ts",
    "read_tsf",
    "write_stream",
]
