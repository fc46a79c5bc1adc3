"""The cells of a sweep: combinations of rank, seed and other settings, each as the settings of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from ofa_jax.config.load import build_experiment, dump_experiment
from ofa_jax.config.schema import Experiment, Init, Scaling
from ofa_jax.errors import ConfigError
from ofa_jax.model.networks import Network
from ofa_jax.studies import parse_list
from ofa_jax.studies.sweep.program import bucket
from ofa_jax.train.memory import activation_bytes, room_per_device

_SETTINGS = {
    "ranks": ("adapters", "rank", "rank"),
    "alphas": ("adapters", "alpha", "alpha"),
    "scalings": ("adapters", "scaling", ""),
    "inits": ("adapters", "init", ""),
    "learning_rates": ("train", "learning_rate", "rate"),
}
"""For each axis the section and name of its setting, and its label in cell names."""


@dataclass(frozen=True)
class Axes:
    """What varies in a sweep; default: the experiment's own value.

    Attributes:
        ranks: Values of ``adapters.rank``.
        seeds: Number of seeds. Seed k, from 0, adds k to ``train.seed`` (batch order, dropout) and
            ``adapters.seed`` (initial adapters). Frozen random layers and a random trunk, drawn from
            ``network.seed`` and ``trunk.random.seed``, are the same in all cells.
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
        """As stored in JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Cell:
    """One trained adapter of a sweep.

    Attributes:
        name: Its folder in ``cells``.
        seed: The number k of its seed (:class:`Axes`).
        experiment: The settings with which ``ofa-jax train`` trains the same adapter.
    """

    name: str
    seed: int
    experiment: Experiment

    @property
    def rank(self) -> int:
        return self.experiment.adapters.rank

    def columns(self) -> dict[str, Any]:
        """What identifies the cell, as the first columns of the table."""
        settings = dump_experiment(self.experiment)
        return {name: settings[section][name] for section, name, _ in _SETTINGS.values()} | {
            "seed": self.seed
        }


@dataclass(frozen=True)
class Group:
    """Cells that are trained together in one program.

    Attributes:
        name: The folder of its checkpoints.
        cells: Of one bucket.
        width: The rank that all are padded to: the sweep's largest in this bucket.
        lanes: Lanes of the program, at least one per cell.
    """

    name: str
    cells: tuple[Cell, ...]
    width: int
    lanes: int


def cells_of(experiment: Experiment, axes: Axes) -> list[Cell]:
    """All combinations, in the order of the table: by rank first, by seed last.

    Raises:
        ConfigError: An axis is empty, lists a value twice or has one that its setting does not take.
    """
    plain = dump_experiment(experiment)
    values: dict[str, Sequence[Any]] = {}
    for axis, (section, name, _) in _SETTINGS.items():
        given = getattr(axes, axis)
        values[axis] = (plain[section][name],) if given is None else given
        if not values[axis]:
            raise ConfigError("there is no value", where=axis, fix="Give at least one")
        if len(set(values[axis])) < len(values[axis]):
            raise ConfigError(f"{list(values[axis])} lists a value twice", where=axis, fix="List each once")
    if axes.seeds < 1:
        raise ConfigError(f"{axes.seeds} is less than 1", where="seeds")
    cells = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        varied = [axis for axis in values if axis == "ranks" or len(values[axis]) > 1]
        labels = [_label(_SETTINGS[axis][2], chosen[axis]) for axis in varied]
        for seed in range(axes.seeds):
            settings = {**plain, "adapters": dict(plain["adapters"]), "train": dict(plain["train"])}
            for axis, value in chosen.items():
                section, name, _ = _SETTINGS[axis]
                settings[section][name] = value
            for section in ("adapters", "train"):
                settings[section]["seed"] += seed
            cells.append(
                Cell("-".join([*labels, f"seed{seed}"]), seed, build_experiment(settings, where="sweep"))
            )
    return cells


def _label(label: str, value: Any) -> str:
    return f"{label}{value:.12g}" if label else value


def parse_axes(
    ranks: str,
    seeds: int = 1,
    *,
    alphas: str = "",
    scalings: str = "",
    inits: str = "",
    learning_rates: str = "",
) -> Axes:
    """Axes from comma-separated lists; default: the experiment's own values.

    Raises:
        ConfigError: A value is not a number, or not one of the names.
    """
    return Axes(
        ranks=parse_list(ranks, int, where="ranks"),
        seeds=seeds,
        alphas=parse_list(alphas, float, where="alphas") or None,
        scalings=parse_list(scalings, get_args(Scaling), where="scalings") or None,
        inits=parse_list(inits, get_args(Init), where="inits") or None,
        learning_rates=parse_list(learning_rates, float, where="learning_rates") or None,
    )


def groups_of(cells: Sequence[Cell], at_once: Mapping[int, int]) -> list[Group]:
    """The cells by bucket, from small ranks to large, in groups of one size with few idle lanes.

    Args:
        cells: All cells.
        at_once: For each bucket, the largest number of cells to train together.
    """
    groups: list[Group] = []
    for limit in sorted({bucket(cell.rank) for cell in cells}):
        inside = [cell for cell in cells if bucket(cell.rank) == limit]
        width, count = max(cell.rank for cell in inside), -(-len(inside) // at_once[limit])
        lanes = -(-len(inside) // count)
        for first in range(0, len(inside), lanes):
            chosen = tuple(inside[first : first + lanes])
            groups.append(Group(f"group-{len(groups) + 1}", chosen, width, lanes))
    return groups


def adapters_at_once(network: Network, trainable_bytes: int, batch: int, backend: str) -> int:
    """Default number of adapters to train together.

    One on a CPU: several gain nothing there (tools/bench.py, section ``sweep``), and idle or ended ones would
    cost time. Elsewhere as many as fit into half the device's memory, by estimate: of each the parameters,
    two moments, the gradient and the best tree, and the intermediate values of a batch.

    Args:
        network: Their common network.
        trainable_bytes: Of the largest one.
        batch: Windows that are processed at a time.
        backend: jax's name of the kind of device.
    """
    if backend == "cpu":
        return 1
    return max(1, room_per_device() // 2 // (5 * trainable_bytes + batch * activation_bytes(network)))
