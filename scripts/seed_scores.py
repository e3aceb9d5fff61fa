#!/usr/bin/env python3
"""Scores of several seeds of one training: mean, standard deviation, and how many diverged.

    seed_scores.py SAVE_DIR...

reads ``train.log`` and ``evaluation/scores.json`` of each folder, as `train.sh` and
`translation_scores.py` wrote them, and prints a table in Markdown. A training that diverged has no
part in a mean. Whether it did is judged by ``sigma_fairseq/verdict.py``; one that fairseq gave up,
because its gradients were not finite, did.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sigma_fairseq.report.runs import RunError, load_run
from sigma_fairseq.verdict import Verdict, judge

SCORES = ("fairseq_bleu", "sacrebleu")
TITLES = {"fairseq_bleu": "BLEU", "sacrebleu": "sacreBLEU"}


def verdict_of(save: Path) -> Verdict:
    """What became of a training.

    Raises:
        RunError: the folder is not a training's, or nothing is logged yet.
    """
    losses = load_run(save).losses.tolist()
    if not (save / "finished.txt").exists():
        log = (save / "train.log").read_text(encoding="utf-8", errors="replace")
        # How fairseq ends when its gradients are not finite.
        if "\nFloatingPointError: " in log:
            return Verdict.DIVERGED
    return judge(losses)


def table(saves: Sequence[Path], verdicts: Sequence[Verdict]) -> str:
    """The seeds' scores, and the last lines; see the module's text."""
    scores = [_scores(save) for save in saves]
    splits = list(dict.fromkeys(split for score in scores for split in score))
    columns = [(split, kind) for split in splits for kind in SCORES]
    lines = [["training", "verdict", *(f"{split} {TITLES[kind]}" for split, kind in columns)]]
    lines.append(["---"] * len(lines[0]))
    for save, verdict, score in zip(saves, verdicts, scores, strict=True):
        figures = [f"{score[split][kind]:.2f}" if score else "-" for split, kind in columns]
        lines.append([str(save), str(verdict), *figures])
    good = [
        score
        for score, verdict in zip(scores, verdicts, strict=True)
        if score and verdict != Verdict.DIVERGED
    ]
    spread = [_spread([score[split][kind] for score in good]) for split, kind in columns]
    diverged = f"DV {verdicts.count(Verdict.DIVERGED)}/{len(verdicts)}"
    lines.append([f"mean of {len(good)}", diverged, *spread])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _scores(save: Path) -> dict[str, dict[str, Any]]:
    file = save / "evaluation" / "scores.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _spread(figures: list[float]) -> str:
    if not figures:
        return "-"
    mean = f"{fmean(figures):.2f}"
    return mean if len(figures) == 1 else f"{mean} ± {stdev(figures):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Scores of several seeds of one training.")
    parser.add_argument("saves", type=Path, nargs="+", metavar="SAVE_DIR")
    saves = parser.parse_args(arguments).saves
    try:
        verdicts = [verdict_of(save) for save in saves]
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(saves, verdicts), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
