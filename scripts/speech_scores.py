#!/usr/bin/env python3
"""Hypotheses and error rates from what fairseq-generate wrote: the end of every speech recipe.

    speech_scores.py --split test-clean generated/generate-test-clean.txt data/test-clean.tsv OUT

prints word and character error rates of every split, with what they are made of, and writes

    OUT/test-clean.tsv                                utterances, with their word errors
    OUT/test-clean.ref.trn, OUT/test-clean.hyp.trn    the same for NIST's sclite
    OUT/test-clean.nbest.tsv                          if --nbest printed more, with log2 scores
    OUT/scores.json

Generate with ``--scoring wer``: fairseq's own word error rate must be the one found here. An
utterance without a hypothesis is an error, since what it would have cost is not known.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer

#: fairseq prints two decimals.
FAIRSEQ_ROUNDING = 0.00501

#: Scores (log2) and texts of each row of a manifest, the best first.
Hypotheses = dict[int, list[tuple[float, str]]]


class ScoreError(Exception):
    """Output that cannot be scored; its message is one line for the user."""


@dataclass(frozen=True)
class Utterance:
    """A line of a manifest."""

    name: str
    speaker: str
    reference: str


def count_errors(edits: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    """The number of edits."""
    return edits.substitutions + edits.deletions + edits.insertions


@dataclass(frozen=True)
class ErrorRate:
    """The least number of edits that turn hypotheses into references, over all of a split."""

    percent: float
    substitutions: int
    deletions: int
    insertions: int
    length: int
    """Words or characters of the references."""

    @classmethod
    def of(cls, edits: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorRate:
        """From jiwer's edits."""
        length = edits.hits + edits.substitutions + edits.deletions
        return cls(
            percent=100 * count_errors(edits) / length,
            substitutions=edits.substitutions,
            deletions=edits.deletions,
            insertions=edits.insertions,
            length=length,
        )

    def __str__(self) -> str:
        return (
            f"{self.percent:6.2f} %  of {self.length}: {self.substitutions} substitutions, "
            f"{self.deletions} deletions, {self.insertions} insertions"
        )


@dataclass(frozen=True)
class Scores:
    """The scores of one split."""

    utterances: int
    wer: ErrorRate
    cer: ErrorRate
    """Spaces between words are characters too."""


def read_manifest(path: Path) -> list[Utterance]:
    """The utterances of a manifest, in its order.

    Raises:
        ScoreError: it has none, or a column is missing.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    try:
        utterances = [Utterance(row["id"], row["speaker"], row["tgt_text"]) for row in rows]
    except KeyError as error:
        raise ScoreError(f"{path}: no column {error.args[0]}") from error
    if not utterances:
        raise ScoreError(f"{path}: no utterances")
    return utterances


def read_generated(path: Path) -> tuple[Hypotheses, float]:
    """The hypotheses in fairseq-generate's output, and fairseq's word error rate in percent.

    Args:
        path: what fairseq-generate printed for a subset, or wrote below ``--results-path``.

    Raises:
        ScoreError: it did not finish, or did not score with ``--scoring wer``.
    """
    hypotheses: Hypotheses = {}
    result = None
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            if line.startswith("D-"):
                # D-<row of the manifest> TAB <score> TAB <text>
                row, score, text = line.rstrip("\n").split("\t", 2)
                hypotheses.setdefault(int(row.removeprefix("D-")), []).append((float(score), text))
            elif line.startswith("Generate "):
                result = line.rstrip("\n").partition(": ")[2]
    if result is None:
        raise ScoreError(f"{path}: no score at the end; generation did not finish")
    found = re.fullmatch(r"WER: ([\d.]+)", result)
    if found is None:
        raise ScoreError(f"{path}: not a word error rate: {result!r}; generate with --scoring wer")
    return hypotheses, float(found[1])


def check_rows(rows: Iterable[int], utterances: Sequence[Utterance]) -> None:
    """Checks that hypotheses are of all rows of a manifest and of no other.

    Raises:
        ScoreError: they are not; it names the first of those that are missing.
    """
    found = set(rows)
    missing = [each.name for row, each in enumerate(utterances) if row not in found]
    if missing:
        first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ScoreError(f"{len(missing)} of {len(utterances)} have no hypothesis: {first}")
    if len(found) > len(utterances):
        raise ScoreError(f"{len(found)} hypotheses for {len(utterances)} utterances")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes tab-separated values."""
    lines = ["\t".join(map(str, row)) + "\n" for row in (header, *rows)]
    path.write_text("".join(lines), encoding="utf-8")


def write_trn(path: Path, utterances: Sequence[Utterance], texts: Sequence[str]) -> None:
    """Writes transcripts in sclite's format, with its ids (speaker-utterance)."""
    lines = [
        f"{text} ({each.speaker}-{each.name})\n"
        for each, text in zip(utterances, texts, strict=True)
    ]
    path.write_text("".join(lines), encoding="utf-8")


def write_split(
    name: str, utterances: Sequence[Utterance], hypotheses: Hypotheses, out: Path
) -> None:
    """Writes a split's hypotheses to `out`; see the module's text."""
    best = [hypotheses[row][0][1] for row in range(len(utterances))]
    write_table(
        out / f"{name}.tsv",
        ("id", "reference", "hypothesis", "errors"),
        (
            (
                each.name,
                each.reference,
                text,
                count_errors(jiwer.process_words(each.reference, text)),
            )
            for each, text in zip(utterances, best, strict=True)
        ),
    )
    write_trn(out / f"{name}.ref.trn", utterances, [each.reference for each in utterances])
    write_trn(out / f"{name}.hyp.trn", utterances, best)
    if any(len(each) > 1 for each in hypotheses.values()):
        write_table(
            out / f"{name}.nbest.tsv",
            ("id", "rank", "score", "hypothesis"),
            (
                (each.name, rank, score, text)
                for row, each in enumerate(utterances)
                for rank, (score, text) in enumerate(hypotheses[row], start=1)
            ),
        )


def score_split(name: str, generated: Path, manifest: Path, out: Path) -> Scores:
    """Scores a split and writes its hypotheses to `out`.

    Raises:
        ScoreError: what was generated is incomplete or does not belong to the manifest.
    """
    utterances = read_manifest(manifest)
    hypotheses, fairseq_wer = read_generated(generated)
    try:
        check_rows(hypotheses, utterances)
    except ScoreError as error:
        raise ScoreError(f"{generated}: {error}") from error
    references = [each.reference for each in utterances]
    best = [hypotheses[row][0][1] for row in range(len(utterances))]
    scores = Scores(
        utterances=len(utterances),
        wer=ErrorRate.of(jiwer.process_words(references, best)),
        cer=ErrorRate.of(jiwer.process_characters(references, best)),
    )
    if abs(scores.wer.percent - fairseq_wer) > FAIRSEQ_ROUNDING:
        raise ScoreError(
            f"{generated}: fairseq found a WER of {fairseq_wer:.2f} %, but against {manifest} it "
            f"is {scores.wer.percent:.2f} %"
        )
    write_split(name, utterances, hypotheses, out)
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Scores what fairseq-generate wrote.")
    parser.add_argument(
        "--split",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "GENERATED", "MANIFEST"),
        help="a name, fairseq-generate's output and the split's .tsv",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="an existing folder")
    options = parser.parse_args(arguments)
    scores: dict[str, Scores] = {}
    try:
        for name, generated, manifest in options.split:
            scores[name] = score_split(name, Path(generated), Path(manifest), options.out)
        (options.out / "scores.json").write_text(
            json.dumps({name: asdict(each) for name, each in scores.items()}, indent=2) + "\n",
            encoding="utf-8",
        )
    except (ScoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, each in scores.items():
        print(f"{name} ({each.utterances} utterances)")
        print(f"  WER  {each.wer}")
        print(f"  CER  {each.cer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
