"""The records of the catalog; entries.yaml has the data sets."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from ofa_jax.config.tasks import SplitRule, Timestamps
from ofa_jax.errors import DataError

Kind = Literal["frame", "collection", "cases", "stream"]


@dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Attributes:
        path: Its path below the data root; ``.gz`` may be appended.
        role: ``data``, ``train``, ``test``, ``info``, ``naive2``, or a stream's name.
        sha256: Of the published file's uncompressed content; None where unknown.
        copy_sha256: Of a copy with the same values but other bytes, accepted where ``sha256`` is unknown.
        url: Where it can be downloaded.
        member: Its name inside the zip archive at ``url``; None where ``url`` is the file itself.
        needed: Whether the data set cannot be read without it.
    """

    path: str
    role: str = "data"
    sha256: str | None = None
    copy_sha256: str | None = None
    url: str | None = None
    member: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class DatasetEntry:
    """A benchmark data set.

    Attributes:
        name: Its name in commands and settings.
        kind: A ``frame`` (CSV), a ``collection`` of single series (``.tsf`` or M4), labeled ``cases``
            (``.ts``), or a labeled ``stream`` (``.npz``).
        title, note, pages, licence, citation: One line about it, advice, web pages, what its owners allow,
            and the paper that introduced it.
        files: Its files.
        split: Split rule of a frame (protocol §3).
        frequency: Its step: a pandas alias for frames; Y, Q, M, W, D or h for collections.
        season: Season length in steps; for collections the m of MASE (protocol §3).
        horizons: The published horizons, in steps.
        timestamps: How a frame's protocol treats repeated and missing timestamps.
        n_rows, n_channels, n_series, n_train, n_test, length, n_classes: Sizes: rows T, channels C, series S,
            training and test cases or steps, steps of the longest case, classes K.
    """

    name: str
    kind: Kind
    title: str
    files: tuple[DataFile, ...]
    pages: tuple[str, ...]
    licence: str
    citation: str
    note: str = ""
    split: SplitRule = "ratio"
    frequency: str | None = None
    season: int = 1
    horizons: tuple[int, ...] = ()
    timestamps: Timestamps = "error"
    n_rows: int | None = None
    n_channels: int | None = None
    n_series: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    length: int | None = None
    n_classes: int | None = None

    def file(self, role: str = "data") -> DataFile:
        """The file with a role.

        Raises:
            DataError: The data set has none.
        """
        roles = {file.role: file for file in self.files}
        if role not in roles:
            what = f"the data set `{self.name}` has no file `{role}`"
            raise DataError(what, fix=f"It has {', '.join(roles)}")
        return roles[role]


def _read() -> tuple[DatasetEntry, ...]:
    text = resources.files("ofa_jax.data.catalog").joinpath("entries.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is built in
    found = []
    for family in yaml.load(text, Loader=loader):
        members = family.pop("members", [{}])
        found += [_fill(family, member) | member for member in members]
    return TypeAdapter(tuple[DatasetEntry, ...]).validate_python(found)


def _fill(template: Any, member: dict[str, Any]) -> Any:
    """The template with a member's fields in its texts (see entries.yaml)."""
    if isinstance(template, dict):
        return {name: _fill(value, member) for name, value in template.items()}
    if isinstance(template, list):
        return [_fill(value, member) for value in template]
    if isinstance(template, str):
        alone = re.fullmatch(r"{(\w+)}", template)
        return member.get(alone[1]) if alone else template.format_map(member)
    return template


ENTRIES = _read()
"""Every data set of the catalog."""
