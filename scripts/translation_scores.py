#!/usr/bin/env python3
"""Hypotheses and BLEU from what fairseq-generate wrote: the end of every translation recipe.

    translation_scores.py --split test generated/generate-test.txt refs/test.de --language de OUT

writes ``OUT/hypotheses.test.de`` (plain text, in the order of the references) and
``OUT/scores.json`` and prints two scores of every split, which are not comparable with each other:
fairseq's own, on words between spaces, punctuation attached, and sacreBLEU's, which tokenizes both
sides itself and has a signature. Generate with ``--post-process``, so that D-lines are plain text,
or text that Moses's rules have tokenized: with ``--moses`` it is detokenized for the file and for
sacreBLEU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sacrebleu.metrics import BLEU
from sacremoses import MosesDetokenizer


class ScoreError(Exception):
    """Output that cannot be scored; its message is one line for the user."""


@dataclass(frozen=True)
class Scores:
    """The scores of one split."""

    sentences: int
    fairseq: str
    """fairseq's line, such as ``BLEU4 = 30.12, 60.1/36.2/...``."""
    fairseq_bleu: float
    sacrebleu: float
    signature: str


def read_generated(path: Path) -> tuple[list[str], str]:
    """The best hypothesis of each sentence, and fairseq's own score.

    Args:
        path: what fairseq-generate printed for a subset, or wrote below ``--results-path``.

    Returns:
        Hypotheses in the order of the data, and the text after ``Generate ... with beam=N:``.

    Raises:
        ScoreError: the output is incomplete.
    """
    hypotheses: dict[int, str] = {}
    result = None
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            if line.startswith("D-"):
                # D-<sentence> TAB <score> TAB <text>; the first of a sentence is its best.
                sentence, _, text = line.rstrip("\n").split("\t", 2)
                hypotheses.setdefault(int(sentence.removeprefix("D-")), text)
            elif line.startswith("Generate "):
                result = line.rstrip("\n").partition(": ")[2]
    if result is None:
        raise ScoreError(f"{path}: no score at the end; generation did not finish")
    if sorted(hypotheses) != list(range(len(hypotheses))):
        raise ScoreError(f"{path}: some sentences have no hypothesis")
    return [hypotheses[sentence] for sentence in range(len(hypotheses))], result


def score(hypotheses: Sequence[str], references: Sequence[str], fairseq: str) -> Scores:
    """Scores plain hypotheses against plain references.

    Args:
        hypotheses, references: one string a sentence, in the same order.
        fairseq: fairseq's score of the same hypotheses; see `read_generated`.

    Raises:
        ScoreError: different numbers of sentences, or a score that is not fairseq's BLEU.
    """
    if len(hypotheses) != len(references):
        raise ScoreError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    found = re.match(r"BLEU4? = ([\d.]+)", fairseq)
    if found is None:
        raise ScoreError(f"not fairseq's BLEU: {fairseq!r}")
    metric = BLEU()
    return Scores(
        sentences=len(references),
        fairseq=fairseq,
        fairseq_bleu=float(found[1]),
        sacrebleu=round(metric.corpus_score(hypotheses, [references]).score, 2),
        signature=str(metric.get_signature()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Scores what fairseq-generate wrote.")
    parser.add_argument(
        "--split",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "GENERATED", "REFERENCES"),
        help="a name, fairseq-generate's output and the references, plain text",
    )
    parser.add_argument("--language", required=True, help="of the target")
    parser.add_argument("--moses", action="store_true", help="the hypotheses are tokenized")
    parser.add_argument("out", type=Path, metavar="OUT", help="an existing folder")
    options = parser.parse_args(arguments)
    scores: dict[str, Scores] = {}
    try:
        for name, generated, references in options.split:
            hypotheses, fairseq = read_generated(Path(generated))
            if options.moses:
                detokenizer = MosesDetokenizer(options.language)
                hypotheses = [detokenizer.detokenize(line.split()) for line in hypotheses]
            lines = Path(references).read_text(encoding="utf-8").removesuffix("\n").split("\n")
            scores[name] = score(hypotheses, lines, fairseq)
            (options.out / f"hypotheses.{name}.{options.language}").write_text(
                "".join(line + "\n" for line in hypotheses), encoding="utf-8"
            )
    except ScoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (options.out / "scores.json").write_text(
        json.dumps({name: asdict(each) for name, each in scores.items()}, indent=2) + "\n",
        encoding="utf-8",
    )
    for name, each in scores.items():
        print(f"{name} ({each.sentences} sentences)")
        print(f"  fairseq    {each.fairseq}")
        print(f"  sacreBLEU  {each.sacrebleu:.2f}  {each.signature}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
