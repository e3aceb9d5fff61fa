"""Sentence pairs by the million: converted on all cores, in order, with progress and counts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice, zip_longest
from multiprocessing import Pool
from pathlib import Path

from parallel_text import TextError

#: A pair converted, or why it is left out; each line comes without its end. It goes to other
#: processes, so it has to be of a kind that can be pickled.
Convert = Callable[[str, str], tuple[str, str] | str]

KEPT = "kept"
NOT_UTF8 = "not UTF-8"
EMPTY = "empty"
CHUNK = 1000

_convert: Convert


def convert_files(
    convert: Convert,
    corpora: dict[str, Sequence[Path]],
    outputs: Sequence[Path],
    workers: int | None = None,
) -> dict[str, Counter[str]]:
    """Converts the pairs of all corpora into one pair of files, which appear when all is there.

    Progress goes to stderr: a line that is rewritten on a terminal, one every 30 s otherwise.

    Args:
        convert: what to do with a pair.
        corpora: name → the files of the two languages, as many lines in each.
        outputs: the two files to write.
        workers: processes (default: one for each core).

    Returns:
        Name → how many pairs were kept, and left out for which reason.

    Raises:
        TextError: a file is missing, or two files differ in length.
    """
    counts = {}
    parts = [path.with_name(f"{path.name}.part") for path in outputs]
    with ExitStack() as stack:
        streams = [stack.enter_context(path.open("wb")) for path in parts]
        pool = stack.enter_context(Pool(workers or os.cpu_count(), _start, (convert,)))
        for name, files in corpora.items():
            progress = Progress(name)
            counts[name] = Counter[str]()
            for count, texts in pool.imap(_convert_chunk, read_chunks(files)):
                counts[name] += count
                for stream, text in zip(streams, texts, strict=True):
                    stream.write(text)
                progress.show(counts[name].total())
            progress.end()
    for part, path in zip(parts, outputs, strict=True):
        part.replace(path)
    return counts


def read_chunks(files: Sequence[Path]) -> Iterator[list[tuple[bytes, bytes]]]:
    """The lines of two files side by side, some at a time.

    Raises:
        TextError: a file is missing, or they differ in length.
    """
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise TextError(f"{missing[0]}: no such file")
    with files[0].open("rb") as source, files[1].open("rb") as target:
        pairs = zip_longest(source, target, fillvalue=b"")
        done = 0
        while chunk := list(islice(pairs, CHUNK)):
            if b"" in chunk[-1]:
                short = files[chunk[-1].index(b"")]
                lines = done + sum(b"" not in pair for pair in chunk)
                other = files[1 - files.index(short)]
                raise TextError(f"{short} ends after {lines:,} lines, {other.name} does not")
            done += len(chunk)
            yield chunk


def summary(name: str, counts: Counter[str]) -> str:
    """A line about what was kept and what was not."""
    dropped = ", ".join(
        f"{number:,} {reason}" for reason, number in counts.items() if reason != KEPT
    )
    left_out = f"; left out: {dropped}" if dropped else ""
    return f"{name}: {counts[KEPT]:,} of {counts.total():,} pairs kept{left_out}"


def read_counts(file: Path) -> dict[str, Counter[str]]:
    """What `write_counts` wrote."""
    return {name: Counter(counts) for name, counts in json.loads(file.read_text()).items()}


def write_counts(file: Path, counts: dict[str, Counter[str]]) -> None:
    """Keeps counts; the file's presence says that the text beside it is complete."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(counts, indent=1) + "\n")
    part.replace(file)


class Progress:
    """Shows on stderr how many pairs are done."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pause, self._end = (0.5, "\r") if sys.stderr.isatty() else (30.0, "\n")
        self._start = self._last = time.monotonic()

    def show(self, done: int) -> None:
        """Shows it, unless the last time is not long ago."""
        now = time.monotonic()
        if now - self._last >= self._pause:
            self._last = now
            line = f"{self._name}: {done:,} pairs, {done / (now - self._start):,.0f} a second"
            print(f"{line:<70}", end=self._end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Takes the line away from a terminal, for whoever prints next."""
        if sys.stderr.isatty():
            print(" " * 70, end="\r", file=sys.stderr, flush=True)


def _start(convert: Convert) -> None:
    global _convert
    _convert = convert


def _convert_chunk(chunk: list[tuple[bytes, bytes]]) -> tuple[Counter[str], tuple[bytes, bytes]]:
    counts = Counter[str]()
    converted = []
    for raw in chunk:
        try:
            source, target = (line.decode().rstrip("\r\n") for line in raw)
        except UnicodeDecodeError:
            counts[NOT_UTF8] += 1
            continue
        result = _convert(source, target)
        if isinstance(result, str):
            counts[result] += 1
        else:
            counts[KEPT] += 1
            converted.append(result)
    source, target = ("".join(f"{pair[side]}\n" for pair in converted) for side in (0, 1))
    return counts, (source.encode(), target.encode())
