#!/usr/bin/env python3
"""Checks parallel text and copies it: what every translation recipe does before anything else.

    parallel_text.py --languages en de --split RAW/train train --split RAW/val valid OUT

reads ``RAW/train.en`` and ``RAW/train.de`` (or the same names with ``.gz``) and writes the same
lines, uncompressed, to ``OUT/train.en`` and ``OUT/train.de``, and so on for every split. The two
sides must be UTF-8 and have the same number of lines, none of them blank. The first fault ends the
run with exit status 1 and one line that names the file and, where there is one, the line.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path


class TextError(Exception):
    """A fault of the text; its message is one line for the user, with file and line."""


def find_text(stem: Path) -> Path:
    """The file of this name, or else the compressed one.

    Args:
        stem: the path without ``.gz``.

    Raises:
        TextError: there is neither.
    """
    for path in (stem, stem.with_name(stem.name + ".gz")):
        if path.is_file():
            return path
    raise TextError(f"{stem}.gz: no such file, nor {stem.name} without .gz")


def read_lines(path: Path, *, blank: bool = False) -> Iterator[str]:
    """The lines of a text file, checked one by one as they are read.

    Args:
        path: a UTF-8 file with one sentence a line; compressed if its name ends in ``.gz``.
        blank: whether lines may be blank.

    Yields:
        The lines without their ends (``\\n`` or ``\\r\\n``).

    Raises:
        TextError: a line that is not UTF-8, or is blank and must not be, no line at all, or an
            unreadable file.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise TextError(
                        f"{path}: line {number}: not UTF-8 "
                        f"(byte 0x{raw[error.start]:02x}, the {error.start + 1}. of the line)"
                    ) from None
                if not (blank or line.strip()):
                    raise TextError(f"{path}: line {number}: empty")
                yield line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{path}: line {number + 1}: cannot be read: {error}") from None
    if number == 0:
        raise TextError(f"{path}: line 1: the file is empty")


def read_pairs(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """The sentence pairs of two files.

    Raises:
        TextError: as `read_lines`, or the files differ in length.
    """
    for number, pair in enumerate(zip_longest(read_lines(source), read_lines(target)), start=1):
        if None in pair:
            short, long = (source, target) if pair[0] is None else (target, source)
            total = sum(1 for _ in read_lines(long))
            raise TextError(
                f"{short}: line {number}: missing; {short.name} has {number - 1} lines and "
                f"{long.name} has {total}"
            )
        yield pair


def copy_pairs(source: Path, target: Path, source_copy: Path, target_copy: Path) -> int:
    """Checks two files against each other and writes them uncompressed.

    Returns:
        The number of pairs.

    Raises:
        TextError: as `read_pairs`; the copies are then incomplete.
        FileExistsError: there is a file where a copy would go.
    """
    pairs = 0
    with (
        source_copy.open("x", encoding="utf-8", newline="\n") as source_stream,
        target_copy.open("x", encoding="utf-8", newline="\n") as target_stream,
    ):
        for source_line, target_line in read_pairs(source, target):
            pairs += 1
            source_stream.write(source_line + "\n")
            target_stream.write(target_line + "\n")
    return pairs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description="Checks parallel text and copies it, uncompressed, into one folder."
    )
    parser.add_argument("--languages", nargs=2, required=True, metavar=("SRC", "TGT"))
    parser.add_argument(
        "--split",
        nargs=2,
        action="append",
        required=True,
        metavar=("PREFIX", "NAME"),
        help="PREFIX.SRC and PREFIX.TGT (with or without .gz) become OUT/NAME.SRC and NAME.TGT",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="an existing folder")
    options = parser.parse_args(arguments)
    try:
        splits = [
            (name, [find_text(Path(f"{prefix}.{language}")) for language in options.languages])
            for prefix, name in options.split
        ]
        for name, (source, target) in splits:
            copies = [options.out / f"{name}.{language}" for language in options.languages]
            print(f"{name}: {copy_pairs(source, target, *copies):,} pairs", flush=True)
    except (TextError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
