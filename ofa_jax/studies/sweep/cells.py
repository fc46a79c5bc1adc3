"""The cells of a sweep: combinations of rank, seed and other settings, each as the settings of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic import PositiveInt

from ofa_jax.config.load import build_experiment, dump_experiment
from ofa_jax.config.recipes import overlay
from ofa_jax.config.schema import Experiment, Init, Scaling
from ofa_jax.model.networks import Network
from ofa_jax.studies import Choices, Listed
from ofa_jax.studies.sweep.program import bucket
from ofa_jax.train.memory import activation_bytes, room_per_device

SETTINGS = {
    "rank": ("ranks", "adapters", "rank"),
    "alpha": ("alphas", "adapters", "alpha"),
    "scaling": ("scalings", "adapters", ""),
    "init": ("inits", "adapters", ""),
    "learning_rate": ("learning_rates", "train", "rate"),
}
"""For each setting that may vary its axis, its section, and its label in names of cells."""


@pydantic.dataclasses.dataclass(frozen=True)
class Axes(Choices):
    """What varies in a sweep; default: the experiment's own value. Lists may be comma-separated texts.

    Attributes:
        ranks: Values of ``adapters.rank``.
        seeds: Number of seeds. Seed k, from 0, adds k to ``train.seed`` (batch order, dropout) and
            ``adapters.seed`` (initial adapters). Frozen random layers and a random trunk, drawn from
            ``network.seed`` and ``trunk.random.seed``, are the same in all cells.
        alphas, scalings, inits: Values of ``adapters.alpha``, ``adapters.scaling`` and ``adapters.init``.
        learning_rates: Values of ``train.learning_rate``.

    Raises:
        ConfigError: A value of another kind, an empty list or a duplicate.
    """

    ranks: Listed[int]
    seeds: PositiveInt = 1
    alphas: Listed[float] | None = None
    scalings: Listed[Scaling] | None = None
    inits: Listed[Init] | None = None
    learning_rates: Listed[float] | None = None


@dataclass(frozen=True)
class Cell:
    """One trained adapter of a sweep: its folder, the number k of its seed, and the settings of its run."""

    name: str
    seed: int
    experiment: Experiment

    @property
    def rank(self) -> int:
        return self.experiment.adapters.rank


@dataclass(frozen=True)
class Group:
    """Cells of one bucket: a program of ``lanes`` lanes trains them, with ranks padded to ``width``."""

    name: str
    cells: tuple[Cell, ...]
    width: int
    lanes: int


def cells_of(experiment: Experiment, axes: Axes) -> list[Cell]:
    """All combinations, in the order of the table: by rank first, by seed last.

    Raises:
        ConfigError: A value that its setting does not take.
    """
    plain, cells = dump_experiment(experiment), []
    values = [getattr(axes, axis) or (plain[of][name],) for name, (axis, of, _) in SETTINGS.items()]
    for *chosen, seed in itertools.product(*values, range(axes.seeds)):
        changes: dict[str, Any] = {of: {"seed": plain[of]["seed"] + seed} for of in ("adapters", "train")}
        labels = []
        for (name, (_, section, label)), value, among in zip(SETTINGS.items(), chosen, values, strict=True):
            changes[section][name] = value
            if name == "rank" or len(among) > 1:
                labels.append(f"{label}{value:.12g}" if label else value)
        own = build_experiment(overlay(plain, changes), where="sweep")
        cells.append(Cell("-".join([*labels, f"seed{seed}"]), seed, own))
    return cells


def groups_of(cells: Sequence[Cell], at_once: Mapping[int, int]) -> list[Group]:
    """The cells by bucket, from small ranks to large, in groups of one size with few idle lanes.

    ``at_once`` has for each bucket the largest number of cells to train together.
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
    two moments, the gradient and the best tree (``trainable_bytes`` each, of the largest adapter), and the
    intermediate values of a batch.
    """
    if backend == "cpu":
        return 1
    return max(1, room_per_device() // 2 // (5 * trainable_bytes + batch * activation_bytes(network)))
