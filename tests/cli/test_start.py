"""The console script where streams cannot be written, on an interrupt, and in other locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

START = "from ofa_jax.cli.start import main; main()"
# a background job of a shell inherits an ignored interrupt
AT_IMPORT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "ofa_jax.config.load":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
AT_WORK = """
import signal, ofa_jax.build
signal.signal(signal.SIGINT, signal.default_int_handler)
ofa_jax.build.footprint = lambda experiment: signal.raise_signal(signal.SIGINT)
"""


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], text=True, timeout=120, **options)


@pytest.mark.parametrize(
    "before", [AT_IMPORT, pytest.param(AT_WORK, marks=pytest.mark.slow)], ids=["importing", "working"]
)
def test_an_interrupt_is_one_word(before):
    done = run(before + START, "params", "long/etth1", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.slow
def test_an_interrupt_that_is_ignored_stays_ignored():
    before = AT_WORK.replace("signal.default_int_handler", "signal.SIG_IGN").replace(
        "signal.raise_signal(signal.SIGINT)", "signal.raise_signal(signal.SIGINT) or 1 / 0"
    )
    done = run(before + START, "params", "long/etth1", capture_output=True)
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_standard_error_that_is_full_changes_no_result():
    with open("/dev/full", "w") as full:
        assert run(START, "params", "no/such", stdout=subprocess.PIPE, stderr=full).returncode == 2
        done = run(START, "data", "list", "--json", stdout=subprocess.PIPE, stderr=full)
        assert done.returncode == 0
        assert json.loads(done.stdout)["data"]
        done = run(START, "data", "list", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: No space left on device. Check permissions and free space."


@pytest.mark.slow
def test_without_standard_error_nothing_else_reaches_standard_output():
    command = [sys.executable, "-c", START, "params", "no/such"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")


def test_settings_files_are_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "a.yaml").write_bytes("data: {source: x, columns: [größe, 温度]}".encode())
    code = (
        "import sys; from ofa_jax.config.load import load_experiment;"
        " print(ascii(load_experiment(sys.argv[1]).data.columns))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(code, str(tmp_path / "a.yaml"), capture_output=True, env=os.environ | plain)
    assert done.stdout.strip() == ascii(("größe", "温度")), done.stderr
