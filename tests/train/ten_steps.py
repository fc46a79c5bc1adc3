"""Ten steps of a real configuration with dropout, as a script for several devices and processes.

    python ten_steps.py OUT.npz LAYOUT …            each layout such as jit4, pmap2, jit4-fsdp2, jit2-micro7
    python ten_steps.py OUT.npz LAYOUT ADDRESS 2 1  the same as process 1 of 2

OUT.npz holds, for each layout, the losses, the trained leaves and the validation sums of some windows.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

BATCH = 30  # which neither 4 nor 8 devices divide
STEPS = 10


def main(out: str, *layouts: str, team: tuple[str, int, int] | None = None) -> None:
    import jax
    import numpy as np

    from ofa_jax.build import build_model
    from ofa_jax.config.load import load_experiment
    from ofa_jax.config.schema import TrainConfig
    from ofa_jax.data.synthetic import hourly_load
    from ofa_jax.model.trees import flatten
    from ofa_jax.tasks.forecast import prepare, prepare_frame
    from ofa_jax.train.devices import make_layout
    from ofa_jax.train.evaluate import WindowPredictor
    from ofa_jax.train.lanes import Lane
    from ofa_jax.train.loop import Trainer
    from ofa_jax.train.processes import connect, is_main_process
    from ofa_jax.train.program import Program
    from ofa_jax.windows.table import WindowTable

    if team is not None:
        connect(*team, heartbeat=10)
    dropout = ["trunk.dropout=0.1", "adapters.dropout=0.1"]
    config = Path(__file__).parents[2] / "configs" / "quick" / "etth1.yaml"
    experiment = load_experiment(config, [*dropout, f"train.batch_size={BATCH}", "train.eval_batch_size=30"])
    if os.environ.get("OFA_JAX_DATA"):
        task = prepare(experiment.data, experiment.task).task
    else:
        task = prepare_frame(hourly_load(24 * 7 * 20).frame, experiment.data, experiment.task).task
    model = build_model(experiment)
    few = WindowTable(*(column[:43] for column in task.tables["validation"]))
    found = {}
    for name in layouts:
        kind, devices, fsdp, micro = re.fullmatch(
            r"(jit|pmap)(\d+)(?:-fsdp(\d+))?(?:-micro(\d+))?", name
        ).groups()
        changed = {"parallel": kind, "fsdp": int(fsdp or 1), "micro_batch": int(micro) if micro else None}
        settings = TrainConfig.model_validate(experiment.train.model_dump() | changed)
        layout = make_layout(kind, settings.fsdp, jax.devices()[: int(devices)])
        program = Program(model.predict, task, model.frozen, settings, layout=layout)
        trainer = Trainer(program, [Lane(model.trainable, settings.seed)])
        assert layout.devices == int(devices)
        losses = []
        for _ in range(STEPS):
            trainer.run_chunk(1)
            losses.append(trainer.lanes[0].progress.epoch_loss)
        trained = trainer.trainable(0)
        found |= {f"{name}/trained/{path}": leaf for path, leaf in flatten(trained).items()}
        evaluator = WindowPredictor(model.predict, task, task.sums, batch_size=BATCH, layout=layout)
        sums = evaluator(few, program.frozen, trained)
        found |= {f"{name}/sums/{key}": value for key, value in sums.items()}
        found[f"{name}/losses"] = np.diff(losses, prepend=0) / BATCH
        found[f"{name}/frozen_bytes"] = np.array(
            sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(program.frozen))
        )
        if fsdp:
            before, _, entry = (
                program.chunk.lower(*trainer.arguments(0)).compile().as_text().partition("\nENTRY ")
            )
            found[f"{name}/fetched_in_the_loop"], found[f"{name}/fetched_before_it"] = (
                before.count(" all-gather("),
                entry.count(" all-gather("),
            )
    if is_main_process():
        np.savez(out, **found)
    if team is not None:
        jax.distributed.shutdown()


if __name__ == "__main__":
    out, *rest = sys.argv[1:]
    if rest[-1].isdigit():
        *rest, address, processes, process_id = rest
        main(out, *rest, team=(address, int(processes), int(process_id)))
    else:
        main(out, *rest)
