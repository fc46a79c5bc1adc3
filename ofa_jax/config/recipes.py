"""Recipes: which parameters are frozen, trained or adapted, with the hyperparameters that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["freeze", "train", "adapt", "train_and_adapt"]
Rule = tuple[Action, str]
"""An action and a regular expression for a parameter's complete path (``gpt2/h/0/ln_1/scale``)."""


@dataclass(frozen=True)
class Recipe:
    """A preset of partition rules and hyperparameters.

    Attributes:
        rules: Ordered path rules, as :func:`ofa_jax.partition` takes them.
        network: Values of the settings section ``network``.
        adapters: Values of the settings section ``adapters``.
    """

    rules: tuple[Rule, ...]
    network: Mapping[str, Any] = field(default_factory=lambda: {"patch": 16, "stride": 8, "positions": True})
    adapters: Mapping[str, Any] = field(default_factory=dict)


_TWO_ADAPTERS: tuple[Rule, ...] = (
    ("adapt", "gpt2/wpe/embedding"),
    ("adapt", "out_layer/kernel"),
    ("freeze", ".*"),
)
_TUNED = r"gpt2/(wpe|ln_f|h/\d+/ln_[12])/.*"
_RSLORA = {"rank": 16, "alpha": 16.0, "scaling": "rslora", "init": "peft_gaussian", "dropout": 0.01}
_PAPER_LORA = {"rank": 16, "alpha": 1.0, "scaling": "rslora", "init": "theorem", "dropout": 0.01}

RECIPES: dict[str, Recipe] = {
    # The authors' code: overlapping patches, position embedding adapted, alpha 16 (protocol §1.7, §5 row 2).
    "reference": Recipe(_TWO_ADAPTERS, adapters=_RSLORA),
    # The paper's text: adjacent patches, no position embedding, alpha 1, Theorem 1's rank-independent init.
    "paper": Recipe(
        (("adapt", "out_layer/kernel"), ("freeze", ".*")),
        network={"patch": 16, "stride": 16, "positions": False},
        adapters=_PAPER_LORA,
    ),
    # The method's two adapters for every task, also where the authors' code differs (protocol §5 row 4).
    "uniform": Recipe(_TWO_ADAPTERS, adapters=_RSLORA),
    # GPT4TS (Zhou et al., 2023): layer norms, position embedding, all layers around the trunk; no adapters.
    "gpt4ts": Recipe((("train", _TUNED), ("train", "(?!gpt2/).*"), ("freeze", ".*"))),
    # One adapter. Over a pretrained trunk it is computed in closed form.
    "output": Recipe((("adapt", "out_layer/kernel"), ("freeze", ".*")), adapters=_RSLORA),
    "full": Recipe((("train", ".*"),)),
    "head_only": Recipe((("train", "out_layer/.*"), ("freeze", ".*"))),
}

SHORT_TERM_REFERENCE: tuple[Rule, ...] = (
    ("train_and_adapt", "gpt2/wpe/embedding"),
    ("train", r"gpt2/(ln_f|h/\d+/ln_[12])/.*"),
    ("train", "(?!gpt2/).*"),
    ("freeze", ".*"),
)
"""What the authors' short-term code trains: as GPT4TS, with an adapter on ``wpe`` (protocol §5 row 4)."""


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged into a new dict; ``above`` wins."""
    merged: dict[str, Any] = {}
    for name, value in [*below.items(), *above.items()]:
        under = merged.get(name)
        if isinstance(value, Mapping):
            value = overlay(under if isinstance(under, Mapping) else {}, value)
        merged[name] = value
    return merged


def nest(path: str, value: Any) -> Any:
    """``("a.b", 1)`` as ``{"a": {"b": 1}}``."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value
