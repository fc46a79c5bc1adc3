"""The small trunk of the estimators' tests."""

from tests.estimators.conftest import small  # noqa: F401
