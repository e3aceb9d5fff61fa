#!/usr/bin/env python3
"""Perplexities from what fairseq-eval-lm wrote: the end of every language model's recipe.

    perplexity_scores.py --checkpoint checkpoint_best.pt FOLDER valid test

reads ``FOLDER/valid.log`` and ``FOLDER/test.log``, prints perplexity and tokens of each, and writes
``FOLDER/scores.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import sigma_fairseq  # noqa: F401 (what else than tensors a checkpoint may hold)


class ScoreError(Exception):
    """Output that has no score; its message is one line for the user."""


@dataclass(frozen=True)
class Scores:
    """The scores of one split."""

    perplexity: float
    loss: float
    """Bits a token."""
    tokens: int
    """What was predicted: words, and the end of each line."""
    tokens_per_sample: int
    context_window: int
    """Of the tokens of a sample, those that are context only."""
    updates: int
    """Of the checkpoint."""


def read_log(path: Path, updates: int) -> Scores:
    """The scores in fairseq-eval-lm's output.

    Args:
        path: what it printed, the line with its settings included.
        updates: of the checkpoint.

    Raises:
        ScoreError: it did not finish.
    """
    log = path.read_text(encoding="utf-8")
    patterns = (
        r"Perplexity: (\S+)$",
        r"Loss \(base 2\): (\S+),",
        r"Evaluated ([\d,]+) tokens",
        r"'tokens_per_sample': (\d+)",
        r"'context_window': (\d+)",
    )
    found = [match for pattern in patterns if (match := re.search(pattern, log, re.MULTILINE))]
    if len(found) < len(patterns):
        raise ScoreError(f"{path}: no perplexity at the end; evaluation did not finish")
    perplexity, loss, tokens, sample, window = (match[1].replace(",", "") for match in found)
    return Scores(float(perplexity), float(loss), int(tokens), int(sample), int(window), updates)


def updates_of(checkpoint: Path) -> int:
    """The number of updates that a checkpoint of fairseq is of."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    updates: int = state["optimizer_history"][-1]["num_updates"]
    return updates


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Reads perplexities that fairseq-eval-lm wrote.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what was evaluated")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with SPLIT.log of each split")
    parser.add_argument("splits", nargs="+", metavar="SPLIT")
    options = parser.parse_args(arguments)
    updates = updates_of(options.checkpoint)
    try:
        scores = {
            split: read_log(options.folder / f"{split}.log", updates) for split in options.splits
        }
    except ScoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (options.folder / "scores.json").write_text(
        json.dumps({split: asdict(each) for split, each in scores.items()}, indent=2) + "\n",
        encoding="utf-8",
    )
    for split, each in scores.items():
        print(f"{split}: perplexity {each.perplexity:.2f}, {each.tokens:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
