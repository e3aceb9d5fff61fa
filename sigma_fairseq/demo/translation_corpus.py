"""The translation demo's data: number words, cut by a joint BPE, in fairseq's binary form."""

import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sigma_fairseq.demo.bpe import PIECES, TEXT, cut_text
from sigma_fairseq.demo.data_folder import begin_data, finish_data, load_record
from sigma_fairseq.demo.number_words import write_corpus
from sigma_fairseq.demo.settings import TranslationSettings
from sigma_fairseq.sweep.processes import Command, Job

PARTS = ("train", "valid", "test")
LANGUAGES = ("en", "de")


class Corpus(NamedTuple):
    """Data that is ready to train on.

    Attributes:
        folder: `text/` as written, `pieces/` as cut by `bpe.model`, `binary/` for fairseq.
        unigram_loss: bits a target token costs who knows how frequent each is in the training part,
            and nothing else.
        longest_target: tokens of the longest training target.
    """

    folder: Path
    unigram_loss: float
    longest_target: int

    @property
    def binary(self) -> Path:
        return self.folder / "binary"


def data_settings(settings: TranslationSettings) -> dict[str, Any]:
    """What the data depend on."""
    names = ("seed", "train_pairs", "valid_pairs", "test_pairs", "vocabulary")
    return {name: getattr(settings, name) for name in names}


def load_corpus(folder: Path, settings: TranslationSettings) -> Corpus | None:
    """The corpus in a folder, or None if there is none or one of other settings."""
    record = load_record(folder, data_settings(settings))
    return None if record is None else Corpus(folder, **record)


def build_corpus(folder: Path, settings: TranslationSettings) -> Job:
    """Makes the corpus in a folder beside it and moves it into place when it is complete."""
    partial = begin_data(folder)
    pieces = partial / PIECES
    write_corpus(
        partial / TEXT,
        settings.seed,
        settings.train_pairs,
        settings.valid_pairs,
        settings.test_pairs,
    )
    cut_text(partial, [f"train.{language}" for language in LANGUAGES], settings.vocabulary)
    arguments = [sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary"]
    arguments += ["--source-lang", LANGUAGES[0], "--target-lang", LANGUAGES[1]]
    for part in PARTS:
        arguments += [f"--{part}pref", str(pieces / part)]
    arguments += ["--destdir", str(partial / "binary"), "--workers", "1"]
    yield Command("fairseq-preprocess", arguments, partial / "preprocess.log")

    targets = [
        line.split() for line in (pieces / "train.de").read_text(encoding="utf-8").splitlines()
    ]
    record = {
        "unigram_loss": unigram_loss(targets),
        "longest_target": max(map(len, targets)) + 1,
    }
    finish_data(partial, folder, data_settings(settings), record)


def unigram_loss(sentences: Iterable[list[str]]) -> float:
    """Entropy, in bits, of a token drawn from these sentences; each has its end as one more."""
    counts: Counter[str | None] = Counter()
    for sentence in sentences:
        counts.update(sentence)
        counts[None] += 1
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())
