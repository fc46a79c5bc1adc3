"""Files of tests, and the error about one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ofa_jax.data.frames import read_frame
from ofa_jax.errors import DataError


def write(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(source: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_frame(source, **options)  # type: ignore[arg-type]
    return str(caught.value)
