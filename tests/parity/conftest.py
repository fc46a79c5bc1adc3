"""PyTorch and peft take seconds and hundreds of megabytes to import, so only a run of these tests does it."""

from __future__ import annotations

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if "not parity" in config.option.markexpr else None
