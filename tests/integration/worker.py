"""One of two workers on the CPU, as torchrun starts them.

Run as `torchrun --nproc-per-node 2 --module tests.integration.worker FOLDER`, in which each leaves
what became of a model of each family in `FAMILY-RANK.pt`: its losses, the numbers of its examples,
and u and v of every weight. The data is in FOLDER/data.
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from sigma_fairseq.reparam import sigma_norms
from tests.integration.training import build_trainer, first_epoch, train

UPDATES = {"translation": 200, "speech": 12}


def main() -> None:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    options = (
        *("--distributed-backend", "gloo", "--distributed-init-method", "env://"),
        *("--distributed-world-size", os.environ["WORLD_SIZE"], "--distributed-rank", rank),
        "--distributed-no-spawn",
    )
    for family, updates in UPDATES.items():
        save_dir = folder / f"{family}-{rank}"
        trainer = build_trainer(family, folder / "data" / family, save_dir, *options)
        examples = [number for batch in first_epoch(trainer) for number in batch["id"].tolist()]
        losses = train(trainer, updates)
        vectors = [(norm.u, norm.v) for norm, _ in sigma_norms(trainer.get_model())]
        torch.save((losses, examples, vectors), folder / f"{family}-{rank}.pt")
    distributed.barrier()
    # fairseq holds on to the process group, and an interpreter that ended before the threads of it
    # was seen to abort.
    os._exit(0)


if __name__ == "__main__":
    main()
