#!/usr/bin/env python3
"""How far σ is from the truth over a training: every weight against an SVD.

    sigma_error.py --every 10 fairseq-train DATA --user-dir sigma_fairseq --arch ARCH ...

Runs the training as it is and, every so many updates, compares the σ that the forward pass is about
to use with the largest singular value of W in float64. At the end it prints the median, 90th and
99th percentile and the largest of |σ/σ(W) - 1| over all weights and all of these updates; with
--out also writes each value, a line of JSON an update.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from fairseq_cli import train
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sigma_fairseq.models.stable_model import StableModel
from sigma_fairseq.reparam import sigma_norms

PERCENTILES = {"median": 50, "90 %": 90, "99 %": 99, "largest": 100}


def errors(model: nn.Module) -> list[float]:
    """σ/σ(W) - 1 of every weight as it is."""
    found = []
    with torch.no_grad():
        for norm, stack in sigma_norms(model):
            exact = torch.linalg.matrix_norm(torch.cat(stack).double(), 2)
            found.append(float(norm.sigma(*stack) / exact - 1))
    return found


class Record:
    """A forward pre-hook of all modules that measures StableModels at the start of an update."""

    def __init__(self, every: int, out: TextIO | None) -> None:
        self.every = every
        self.out = out
        self.updates: dict[int, list[float]] = {}

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if not (isinstance(module, StableModel) and module.training):
            return
        update = module.announced_update
        if update % self.every or update in self.updates:
            return
        self.updates[update] = errors(module)
        if self.out is not None:
            self.out.write(json.dumps({"update": update, "errors": self.updates[update]}) + "\n")
            self.out.flush()

    def __str__(self) -> str:
        values = np.abs([value for update in self.updates.values() for value in update])
        figures = [f"{name} {np.percentile(values, p):.2e}" for name, p in PERCENTILES.items()]
        weights = len(next(iter(self.updates.values())))
        return f"{weights} weights, {len(self.updates)} updates: {', '.join(figures)}"


def main() -> None:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=10, metavar="N", help="updates (default: 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON, a line an update")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="fairseq-train and its arguments")
    options = parser.parse_args()
    if options.every < 1:
        parser.error(f"--every {options.every} is less than 1")
    if options.command[:1] != ["fairseq-train"]:
        parser.error("what follows the options has to be a command of fairseq-train")
    sys.argv = options.command
    out = options.out.open("w") if options.out else None
    record = Record(options.every, out)
    register_module_forward_pre_hook(record)
    train.cli_main()
    if not any(record.updates.values()):
        parser.exit(1, "the model has no weight under sigmaReparam, or no update was trained\n")
    print(record)


if __name__ == "__main__":
    main()
