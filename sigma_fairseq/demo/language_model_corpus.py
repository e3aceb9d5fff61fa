"""The language-model demo's data: the prose of Python's own help, cut by BPE, in binary form."""

import platform
import random
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sigma_fairseq.demo.bpe import PIECES, TEXT, cut_text
from sigma_fairseq.demo.data_folder import begin_data, finish_data, load_record
from sigma_fairseq.demo.settings import LanguageModelSettings
from sigma_fairseq.demo.translation_corpus import unigram_loss
from sigma_fairseq.sweep.processes import Command, Job

PARTS = ("train", "valid", "test")

#: Words that a paragraph has at least: below, they are headings and remarks on versions.
LEAST_WORDS = 8

#: Where a line was broken within a word.
_BROKEN = re.compile(r"(?<=\w-)\n\s*")
_BULLET = re.compile(r"(\*|\d+\.|\[\d+\]) ")


class Corpus(NamedTuple):
    """Data that is ready to train on.

    Attributes:
        words: of the training part.
        pieces: of the training part, the ends of its paragraphs included.
        unigram_loss: bits a piece costs who knows how frequent each is in the training part, and
            nothing else.
    """

    words: int
    pieces: int
    unigram_loss: float


def data_settings(settings: LanguageModelSettings) -> dict[str, Any]:
    """What the data depend on; the text is another one in each release of Python."""
    names = ("seed", "held_out", "vocabulary")
    return {name: getattr(settings, name) for name in names} | {"python": platform.python_version()}


def load_corpus(folder: Path, settings: LanguageModelSettings) -> Corpus | None:
    """The corpus in a folder, or None if there is none or one of other settings."""
    record = load_record(folder, data_settings(settings))
    return None if record is None else Corpus(**record)


def build_corpus(folder: Path, settings: LanguageModelSettings) -> Job:
    """Makes the corpus in a folder beside it and moves it into place when it is complete."""
    from pydoc_data.topics import topics

    partial = begin_data(folder)
    (partial / TEXT).mkdir(parents=True)
    for part, paragraphs in split_topics(topics, settings.seed, settings.held_out).items():
        text = "".join(f"{paragraph}\n" for paragraph in paragraphs)
        (partial / TEXT / f"{part}.txt").write_text(text, encoding="utf-8")
    cut_text(partial, ["train.txt"], settings.vocabulary)
    arguments = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source"]
    for part in PARTS:
        arguments += [f"--{part}pref", str(partial / PIECES / f"{part}.txt")]
    arguments += ["--destdir", str(partial / "binary"), "--workers", "1"]
    yield Command("fairseq-preprocess", arguments, partial / "preprocess.log")

    text = (partial / TEXT / "train.txt").read_text(encoding="utf-8")
    cut = (partial / PIECES / "train.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in cut.splitlines()]
    record = {
        "words": len(text.split()),
        "pieces": sum(len(line) + 1 for line in lines),
        "unigram_loss": unigram_loss(lines),
    }
    finish_data(partial, folder, data_settings(settings), record)


def split_topics(topics: Mapping[str, str], seed: int, held_out: int) -> dict[str, list[str]]:
    """Shares out topics, each as a whole; a paragraph that several of them have is in one part.

    Args:
        topics: name → text.
        seed: of the order in which topics go where there is room.
        held_out: characters that validation and test part have room for, each.

    Returns:
        Part → paragraphs, in the order of the topics.
    """
    names = sorted(topics)
    random.Random(seed).shuffle(names)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    room = {"valid": held_out, "test": held_out}
    seen: set[str] = set()
    for name in names:
        own = [paragraph for paragraph in prose(topics[name]) if paragraph not in seen]
        seen.update(own)
        size = sum(map(len, own))
        part = next((part for part in room if size <= room[part]), None)
        if part is not None:
            room[part] -= size
        parts[part or "train"] += own
    return parts


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a text that are sentences, each on one line.

    A text is blocks between empty lines. Those of at least `LEAST_WORDS` words that end with a full
    stop are taken, without the bullet of an item; headings, tables, grammar and most code are not.
    """
    for block in re.split(r"\n\s*\n", text):
        joined = " ".join(_BROKEN.sub("", block).split())
        paragraph = _BULLET.sub("", joined, count=1)
        if paragraph.endswith(".") and len(paragraph.split()) >= LEAST_WORDS:
            yield paragraph
