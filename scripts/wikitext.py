#!/usr/bin/env python3
"""Checks WikiText, or text in its layout, and copies it: a paragraph a line, words between spaces.

    wikitext.py RAW OUT

reads ``RAW/wiki.SPLIT.tokens`` or ``RAW/SPLIT.txt``, or these with ``.gz``, where SPLIT is train,
valid and test, and writes ``OUT/SPLIT.txt``. The text must be UTF-8 and have words in every split;
lines may be blank. Prints lines and words of each split, and which share of the words are ``<unk>``
or do not occur in train. The first fault ends the run with exit status 1 and one line that names
the file.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from parallel_text import TextError, read_lines

SPLITS = ("train", "valid", "test")
UNKNOWN = "<unk>"


def find_split(raw: Path, split: str) -> Path:
    """The file of a split.

    Raises:
        TextError: there is none.
    """
    for name in (f"wiki.{split}.tokens", f"{split}.txt"):
        for file in (raw / name, raw / f"{name}.gz"):
            if file.is_file():
                return file
    raise TextError(f"{raw}: no wiki.{split}.tokens and no {split}.txt, nor one of these with .gz")


def copy_text(source: Path, copy: Path) -> tuple[int, Counter[str]]:
    """Writes a text with single spaces between its words.

    Returns:
        The number of lines, and how often each word occurs.

    Raises:
        TextError: it cannot be read, is not UTF-8 or has no words; the copy is then incomplete.
    """
    lines = 0
    words: Counter[str] = Counter()
    with copy.open("x", encoding="utf-8", newline="\n") as stream:
        for line in read_lines(source, blank=True):
            lines += 1
            found = line.split()
            words.update(found)
            stream.write(" ".join(found) + "\n")
    if not words:
        raise TextError(f"{source}: no words")
    return lines, words


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description="Checks text in WikiText's layout and copies it, uncompressed, into one folder."
    )
    parser.add_argument("raw", type=Path, metavar="RAW", help="the text as it is published")
    parser.add_argument("out", type=Path, metavar="OUT", help="an existing folder")
    options = parser.parse_args(arguments)
    known: set[str] = set()
    try:
        sources = [find_split(options.raw, split) for split in SPLITS]
        for split, source in zip(SPLITS, sources, strict=True):
            lines, words = copy_text(source, options.out / f"{split}.txt")
            if split == "train":
                known = words.keys() - {UNKNOWN}
            share = sum(words[word] for word in words.keys() - known) / words.total()
            print(
                f"{split}: {lines:,} lines, {words.total():,} words, {share:.2%} <unk>", flush=True
            )
    except TextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
