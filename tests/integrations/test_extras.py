"""Without their extras, adapters say what to install, and the package itself needs none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ofa_jax import OfaError
from ofa_jax.integrations import extra

SCRIPT = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "{name}":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import ofa_jax
for public in ofa_jax.__all__:
    getattr(ofa_jax, public)
try:
    import ofa_jax.integrations.{name}
except ImportError as error:
    print(isinstance(error, ofa_jax.OfaError), error)
"""


@pytest.mark.slow  # imports everything
@pytest.mark.parametrize("name", ["sktime", "fev"])
def test_without_its_extra_an_adapter_names_the_command(name):
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=name)], capture_output=True, text=True, check=True
    ).stdout
    wanted = f"ofa_jax.integrations.{name} needs {name}. Run `pip install 'ofa-jax[{name}]'`."
    assert found == f"True {wanted}\n"


def test_a_package_that_is_broken_is_not_called_missing():
    with pytest.raises(ModuleNotFoundError, match="absent_part") as caught, extra("sktime"):
        import absent_part  # noqa: F401
    assert not isinstance(caught.value, OfaError)
