"""Two generated series of every family, as a figure: python tools/prior_figure.py docs/prior.png"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ofa_jax.plots.style import COLORS, new_figure, save_figure
from ofa_jax.prior.families import FAMILIES, standardized

STEPS = 896


def main() -> None:
    figure = new_figure(10, 9)
    axes = figure.subplots(len(FAMILIES) // 2, 4, sharex=True)
    panels = axes.reshape(-1, 2)
    for number, (name, (share, family)) in enumerate(FAMILIES.items()):
        for seed, axis in enumerate(panels[number]):
            draw = np.random.Generator(np.random.Philox(key=[number, seed + 1]))
            axis.plot(standardized(family(draw, STEPS)), color=COLORS[0], linewidth=0.6)
            axis.set_yticks([])
        panels[number][0].set_title(f"{name} ({share:.0%})", loc="left", fontsize=9)
    save_figure(figure, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
