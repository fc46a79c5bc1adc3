"""The entry point: commands, errors as one paragraph, exit codes.

Commands import what they need when they run, so that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import Annotated

import typer

from ofa_jax import __version__
from ofa_jax.cli import data, runs, studies
from ofa_jax.cli.options import FORMER_NAMES, Command, interrupted, message
from ofa_jax.errors import Interrupted, OfaError, printable

app = typer.Typer(
    name="ofa-jax",
    help="One-for-All in JAX: adapt a frozen GPT-2 to time series with rank-stabilized low-rank adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": lambda name: FORMER_NAMES.get(name, name)},
)
for command in (
    *(runs.demo, runs.forecast, runs.fit, runs.train, runs.evaluate, runs.predict),
    *(runs.report, runs.params, runs.convert),
    *(studies.sweep, studies.gradients),
):
    app.command(cls=Command)(command)
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an OfaError is one paragraph on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an encoding may lack a character
    gc.set_threshold(50_000, 20, 20)  # tracing makes millions of objects, in which cycles are seldom
    try:
        app()
    except OfaError as error:
        _fail(message(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(printable(f"{place}{error.strerror or error}. Check permissions and free space."))
    except Interrupted as stop:
        print(interrupted(stop), file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None
    finally:
        gc.freeze()  # nor are they looked for at the end


def _fail(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)
