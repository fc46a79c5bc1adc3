"""What a sweep trains: every combination of ranks, seeds and other numbers of the adapters, each a run of its own settings."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_args

from ofa_jax.adapters.rslora import LoraConfig
from ofa_jax.config import Experiment, Init, Scaling, build_experiment, dump_experiment
from ofa_jax.errors import ConfigError
from ofa_jax.model.networks import Network
from ofa_jax.studies.sweep.program import bucket
from ofa_jax.train.devices import room_per_device
from ofa_jax.train.memory import activation_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Axes:
    """What varies in a sweep; None leaves the settings' own value.

    Attributes:
        ranks: Values of ``adapters.rank``.
        seeds: How many seeds: number k, from 0, adds k to both ``train.seed`` (batch order, dropout) and ``adapters.seed`` (the
            adapters' start). The frozen random layers and a random trunk, drawn from ``network.seed`` and ``trunk.random.seed``, are
            the same in all cells.
        alphas: Values of ``adapters.alpha``.
        scalings: Values of ``adapters.scaling``.
        inits: Values of ``adapters.init``.
        learning_rates: Values of ``train.learning_rate``.
    """

    ranks: tuple[int, ...]
    seeds: int = 1
    alphas: tuple[float, ...] | None = None
    scalings: tuple[Scaling, ...] | None = None
    inits: tuple[Init, ...] | None = None
    learning_rates: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Cell:
    """One trained adapter of a sweep.

    Attributes:
        name: Its folder below ``cells``.
        seed: The number k of its seed (:class:`Axes`).
        experiment: The settings with which ``ofa-jax train`` trains the same adapter alone.
    """

    name: str
    seed: int
    experiment: Experiment

    @property
    def rank(self) -> int:
        return self.experiment.adapters.rank

    @property
    def lora(self) -> LoraConfig:
        adapters = self.experiment.adapters
        return LoraConfig(adapters.rank, adapters.alpha, adapters.scaling, adapters.dropout, adapters.init)

    def columns(self) -> dict[str, Any]:
        """What tells the cell from others, as the first columns of the table."""
        adapters, train = self.experiment.adapters, self.experiment.train
        return {
            "rank": adapters.rank,
            "alpha": adapters.alpha,
            "scaling": adapters.scaling,
            "init": adapters.init,
            "learning_rate": train.learning_rate,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Group:
    """Cells that are trained side by side, in ``lanes`` places of one program; a place without a cell idles.

    Attributes:
        name: The folder of its checkpoints.
        cells: The cells, all of one bucket.
        width: The rank that all are padded to: the largest of the sweep in this bucket.
        lanes: Places of the program.
    """

    name: str
    cells: tuple[Cell, ...]
    width: int
    lanes: int


def cells_of(experiment: Experiment, axes: Axes) -> list[Cell]:
    """Every combination, in the order of the table: by rank first, by seed last.

    Raises:
        ConfigError: A value is not one that the setting takes, or stands twice; there is none.
    """
    adapters, train = experiment.adapters, experiment.train
    values: dict[str, Sequence[Any]] = {
        "ranks": axes.ranks,
        "alphas": axes.alphas or (adapters.alpha,),
        "scalings": axes.scalings or (adapters.scaling,),
        "inits": axes.inits or (adapters.init,),
        "learning_rates": axes.learning_rates or (train.learning_rate,),
    }
    for name, given in values.items():
        option = "--" + name.replace("_", "-")
        if not given:
            raise ConfigError("there is no value", where=option, fix="Name at least one, with commas between")
        if twice := [value for value, count in Counter(given).items() if count > 1]:
            raise ConfigError(f"{twice[0]} stands twice", where=option, fix="Name each value once")
    if axes.seeds < 1:
        raise ConfigError(f"{axes.seeds} seeds are no sweep", where="--seeds", fix="Take at least 1")
    labels = {"ranks": "rank", "alphas": "alpha", "scalings": "", "inits": "", "learning_rates": "rate"}
    plain = dump_experiment(experiment)
    cells = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        varied = [(name, value) for name, value in chosen.items() if name == "ranks" or len(values[name]) > 1]
        told = [f"{labels[name]}{value:.12g}" if labels[name] else value for name, value in varied]
        for seed in range(axes.seeds):
            name = "-".join([*told, f"seed{seed}"])
            cells.append(Cell(name, seed, build_experiment(_changed(plain, chosen, seed), where="sweep")))
    return cells


def _changed(plain: dict[str, Any], chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    adapters, train = plain["adapters"], plain["train"]
    own = {
        "rank": chosen["ranks"],
        "alpha": chosen["alphas"],
        "scaling": chosen["scalings"],
        "init": chosen["inits"],
    }
    return {
        **plain,
        "adapters": {**adapters, **own, "seed": adapters["seed"] + seed},
        "train": {**train, "learning_rate": chosen["learning_rates"], "seed": train["seed"] + seed},
    }


def parse_axes(
    ranks: str,
    seeds: int = 1,
    *,
    alphas: str = "",
    scalings: str = "",
    inits: str = "",
    learning_rates: str = "",
) -> Axes:
    """Axes from the texts of a command line, values with commas between; an empty text leaves the settings' own value.

    Raises:
        ConfigError: A value is no number, or not one of the names.
    """

    def values(option: str, text: str, kind: Callable[[str], T], what: str) -> tuple[T, ...] | None:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        found = []
        for part in parts:
            try:
                found.append(kind(part))
            except ValueError:
                raise ConfigError(
                    f"{part!r} is not {what}", where=option, fix="Name values with commas between"
                ) from None
        return tuple(found) or None

    def name_of(known: tuple[T, ...]) -> Callable[[str], T]:
        return lambda text: known[known.index(text)]

    known_scalings, known_inits = get_args(Scaling), get_args(Init)
    return Axes(
        ranks=values("--ranks", ranks, int, "a whole number") or (),
        seeds=seeds,
        alphas=values("--alphas", alphas, float, "a number"),
        scalings=values(
            "--scalings", scalings, name_of(known_scalings), f"one of {', '.join(known_scalings)}"
        ),
        inits=values("--inits", inits, name_of(known_inits), f"one of {', '.join(known_inits)}"),
        learning_rates=values("--learning-rates", learning_rates, float, "a number"),
    )


def groups_of(cells: Sequence[Cell], at_once: Mapping[int, int]) -> list[Group]:
    """The cells bucket by bucket, from small ranks to large, in groups of one size per bucket that leave as few places idle as can be.

    Args:
        cells: All cells.
        at_once: For each bucket, how many are trained side by side at most.
    """
    groups: list[Group] = []
    for limit in sorted({bucket(cell.rank) for cell in cells}):
        inside = [cell for cell in cells if bucket(cell.rank) == limit]
        width, number = max(cell.rank for cell in inside), -(-len(inside) // at_once[limit])
        lanes = -(-len(inside) // number)
        for start in range(0, len(inside), lanes):
            groups.append(
                Group(f"group-{len(groups) + 1}", tuple(inside[start : start + lanes]), width, lanes)
            )
    return groups


def adapters_at_once(network: Network, trainable_bytes: int, batch: int, backend: str) -> int:
    """How many adapters are trained side by side where nobody says.

    On a CPU one: several side by side bring nothing there (tools/bench.py, section ``sweep``), and an adapter that has ended early, or an
    idle place, would cost a step. Elsewhere as many as half the device's memory holds, by estimate: of each the
    parameters, two moments, the gradient and the best tree, and the intermediate values of a batch.

    Args:
        network: Their common network.
        trainable_bytes: Of the largest.
        batch: Windows that are worked on at a time.
        backend: jax's name of the kind of device.
    """
    if backend == "cpu":
        return 1
    return max(1, room_per_device() // 2 // (5 * trainable_bytes + batch * activation_bytes(network)))
