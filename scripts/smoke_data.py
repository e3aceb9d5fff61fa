#!/usr/bin/env python3
"""Makes up what a recipe's prepare.sh reads: files of the published names and formats, but tiny.

    smoke_data.py RECIPE DIR

writes raw data for ``recipes/RECIPE/prepare.sh`` into DIR, which appears when all of it is there;
one that is there already is left alone. The text and the speech are number words.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import random
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from sigma_fairseq.demo.number_words import LIMIT, english, german, write_corpus
from sigma_fairseq.demo.synthetic_speech import RATE, synthesize

SEED = 1
SPEAKERS = 2


def multi30k_en_de(folder: Path) -> None:
    """`{train,val,test_2016_flickr}.{en,de}.gz`: sentence pairs."""
    write_corpus(folder, SEED, train=400, valid=20, test=20)
    for split, published in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
        for language in ("en", "de"):
            text = folder / f"{split}.{language}"
            (folder / f"{published}.{language}.gz").write_bytes(gzip.compress(text.read_bytes()))
            text.unlink()


def librispeech(folder: Path) -> None:
    """`SET/SPEAKER/CHAPTER/*.flac` and `*.trans.txt`: two speakers read numbers below 1,000."""
    draw = random.Random(SEED)
    for name, count in (("train-clean-100", 24), ("dev-clean", 4), ("test-clean", 4)):
        for speaker in range(1, SPEAKERS + 1):
            chapter = folder / name / str(speaker) / "1"
            chapter.mkdir(parents=True)
            lines = []
            for number in range(count // SPEAKERS):
                utterance = f"{speaker}-1-{number:04}"
                text = english(draw.randrange(1000)).replace("-", " ")
                samples = synthesize(text, np.random.default_rng((SEED, speaker, number)))
                soundfile.write(chapter / f"{utterance}.flac", samples, RATE)
                lines.append(f"{utterance} {text.upper()}\n")
            (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))


def spoken_digits(folder: Path) -> None:
    """`DIGIT_SPEAKER_N.wav` at 8 kHz, where N puts a recording into test, dev or train."""
    for speaker in range(SPEAKERS):
        for digit in range(10):
            for number in (0, 5, 10):
                samples = synthesize(english(digit), np.random.default_rng((speaker, number)))
                soundfile.write(folder / f"{digit}_{speaker}_{number}.wav", samples[::2], RATE // 2)


def wikitext(folder: Path) -> None:
    """`wiki.{train,valid,test}.tokens`: headings, paragraphs of numbers, blank lines, `<unk>`."""
    draw = random.Random(SEED)
    for split, paragraphs in (("train", 200), ("valid", 30), ("test", 30)):
        lines = [" \n = <unk> numbers = \n \n"]
        for _ in range(paragraphs):
            numbers = (english(draw.randrange(LIMIT)) for _ in range(6))
            lines.append(f" {' , '.join(numbers)} . \n")
        (folder / f"wiki.{split}.tokens").write_text("".join(lines))


def wmt17_en_de(folder: Path) -> None:
    """`mirror/`: WMT's archives where they are published, and lists of their sums.

    Each corpus ends with pairs that are left out: an empty one, one that is not UTF-8, one of very
    different lengths.
    """
    draw = random.Random(SEED)
    mirror = folder / "mirror"
    ends = {"en": b"\nV\xf6gel\n" + b"a " * 20 + b"\n", "de": "leer\nVögel\nein Satz\n".encode()}
    for archive, stem in (
        ("wmt13/training-parallel-europarl-v7.tgz", "training/europarl-v7.de-en"),
        ("wmt13/training-parallel-commoncrawl.tgz", "commoncrawl.de-en"),
        (
            "wmt17/translation-task/training-parallel-nc-v12.tgz",
            "training/news-commentary-v12.de-en",
        ),
        ("wmt17/translation-task/rapid2016.tgz", "rapid2016.de-en"),
    ):
        text = _number_sentences(draw, 120)
        files = {
            f"{stem}.{language}": "".join(f"{line}\n" for line in lines).encode() + ends[language]
            for language, lines in text.items()
        }
        _pack(files, mirror / archive, mirror / "sha256.txt", archive.rpartition("/")[2])
    for year in (16, 17):
        text = _number_sentences(draw, 12)
        files = {
            f"test/newstest20{year}-ende-{side}.{language}.sgm": _sgml(text[language]).encode()
            for side, language in (("src", "en"), ("ref", "de"))
        }
        archive = f"wmt{year}/translation-task/test.tgz"
        _pack(files, mirror / archive, mirror / "md5sum.txt", f"wmt{year}-test.tgz")


def _number_sentences(draw: random.Random, count: int) -> dict[str, list[str]]:
    """Sentences by language, with what Moses's scripts normalize, split and escape."""
    numbers = [draw.randrange(LIMIT) for _ in range(count)]
    return {
        "en": [f"It's “{english(number)}”, not more." for number in numbers],
        "de": [f"Es ist „{german(number)}“, nicht mehr." for number in numbers],
    }


def _sgml(sentences: list[str]) -> str:
    """A test set in WMT's format."""
    segments = (
        f'<seg id="{n}">{sentence}</seg>\n' for n, sentence in enumerate(sentences, start=1)
    )
    return f'<doc docid="numbers" genre="news">\n<p>\n{"".join(segments)}</p>\n</doc>\n'


def _pack(files: dict[str, bytes], archive: Path, sums: Path, name: str) -> None:
    """Writes an archive, and its sum, by the kind that the list is named after, under a name."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as stream:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            stream.addfile(entry, io.BytesIO(content))
    digest = hashlib.new(sums.stem.removesuffix("sum"), archive.read_bytes()).hexdigest()
    with sums.open("a") as stream:
        stream.write(f"{digest}  {name}\n")


MAKERS: dict[str, Callable[[Path], None]] = {
    "librispeech": librispeech,
    "multi30k_en_de": multi30k_en_de,
    "spoken_digits": spoken_digits,
    "wikitext103": wikitext,
    "wikitext2": wikitext,
    "wmt17_en_de": wmt17_en_de,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Makes up raw data for a recipe's prepare.sh.")
    parser.add_argument("recipe", choices=MAKERS, metavar="RECIPE", help=", ".join(MAKERS))
    parser.add_argument("folder", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    if folder.exists():
        return 0
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    MAKERS[options.recipe](part)
    part.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
