#!/usr/bin/env python3
"""Parallel text as fairseq's preparation of WMT makes it from what WMT publishes, on all cores.

    moses_text.py --languages en de --corpus RAW/europarl-v7.de-en europarl-v7 \\
        --set RAW/newstest2016-ende-src.en.sgm RAW/newstest2016-ende-ref.de.sgm valid OUT

reads ``RAW/europarl-v7.de-en.en`` and ``.de``, normalizes their punctuation, puts spaces for what
cannot be printed and tokenizes, by sacremoses for Moses's scripts, and writes
``OUT/tokenized/europarl-v7.en`` and ``.de``. Pairs that are not UTF-8, or have nothing on a side,
are left out and counted. Of a set for evaluation all sentences are kept: ``OUT/text/valid.en`` and
``.de`` have them as sacreBLEU has them, ``OUT/tokenized/`` tokenized, with ``'`` for ``’`` and not
normalized otherwise. With ``--no-tokenizer`` nothing is tokenized. What is done of the corpora is
not done again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import regex
from pairs import EMPTY, KEPT, convert_files, read_counts, summary, write_counts
from parallel_text import TextError, read_lines
from sacremoses import MosesPunctNormalizer, MosesTokenizer

NOT_PRINTABLE = regex.compile(r"\p{C}")


class Tokenizer(MosesTokenizer):
    """sacremoses's, without the sets of all letters that it makes anew for each word with a dot."""

    _letters = frozenset(MosesTokenizer.IsAlpha)
    _lower_case = frozenset(MosesTokenizer.IsLower)

    def isanyalpha(self, text: str) -> bool:
        return not self._letters.isdisjoint(text)

    def islower(self, text: str) -> bool:
        return self._lower_case.issuperset(text)


class SentenceCleaner:
    """A sentence of one language, as Moses's scripts leave it.

    Args:
        language: such as "de".
        normalize: whether to normalize punctuation, and to put a space for each character that
            cannot be printed, or else only an apostrophe for each right single quotation mark.
        tokenize: whether to tokenize, compounds with hyphens included, and escape.
    """

    def __init__(self, language: str, *, normalize: bool, tokenize: bool) -> None:
        # perl_parity: where sacremoses is better than Moses's script by default.
        self._normalizer = MosesPunctNormalizer(language, perl_parity=True) if normalize else None
        self._tokenizer = Tokenizer(language) if tokenize else None

    def __call__(self, sentence: str) -> str:
        if self._normalizer is None:
            sentence = sentence.replace("’", "'")
        else:
            sentence = NOT_PRINTABLE.sub(" ", self._normalizer.normalize(sentence))
        if self._tokenizer is None:
            return " ".join(sentence.split())
        tokens: str = self._tokenizer.tokenize(
            sentence, aggressive_dash_splits=True, return_str=True
        )
        return tokens


class PairCleaner:
    """A pair of sentences, each by `SentenceCleaner`; "empty" where nothing of one is left."""

    def __init__(self, languages: Sequence[str], *, normalize: bool, tokenize: bool) -> None:
        self._cleaners = [
            SentenceCleaner(language, normalize=normalize, tokenize=tokenize)
            for language in languages
        ]

    def __call__(self, source: str, target: str) -> tuple[str, str] | str:
        clean_source, clean_target = self._cleaners
        source, target = clean_source(source), clean_target(target)
        return (source, target) if source and target else EMPTY


def read_segments(path: Path) -> list[str]:
    """The sentences of a test set in WMT's SGML, or of a plain file, one a line.

    As in sacreBLEU, entities stay and white space becomes single spaces.

    Raises:
        TextError: it is missing or not UTF-8, has no sentences, or a segment that does not end in
            its line.
    """
    if not path.is_file():
        raise TextError(f"{path}: no such file")
    lines = list(read_lines(path, blank=True))
    if path.suffix == ".sgm":
        lines = [line.strip() for line in lines if line.lstrip().startswith("<seg")]
        matches = [re.fullmatch(r"<seg[^>]*>(.*)</seg>", line) for line in lines]
        if None in matches:
            raise TextError(f"{path}: no </seg> in the line '{lines[matches.index(None)][:40]}'")
        lines = [match[1] for match in matches if match]
    segments = [" ".join(line.split()) for line in lines]
    if not all(segments) or not segments:
        raise TextError(f"{path}: a sentence is empty" if segments else f"{path}: no sentences")
    return segments


def write_set(
    name: str, files: Sequence[Path], languages: Sequence[str], out: Path, tokenize: bool
) -> int:
    """Writes a set for evaluation, plain and tokenized.

    Returns:
        The number of sentences.

    Raises:
        TextError: as `read_segments`, or the two sides differ in number.
    """
    sides = [read_segments(path) for path in files]
    if len(sides[0]) != len(sides[1]):
        raise TextError(f"{files[0]} has {len(sides[0])} sentences and {files[1]} {len(sides[1])}")
    for language, sentences in zip(languages, sides, strict=True):
        clean = SentenceCleaner(language, normalize=False, tokenize=tokenize)
        for folder, lines in (("text", sentences), ("tokenized", map(clean, sentences))):
            text = "".join(f"{line}\n" for line in lines)
            (out / folder / f"{name}.{language}").write_text(text, encoding="utf-8", newline="\n")
    return len(sides[0])


def clean_corpus(
    stem: Path, name: str, languages: Sequence[str], folder: Path, tokenize: bool
) -> str:
    """Writes a training corpus, clean, unless that was done before.

    Returns:
        A line about it.

    Raises:
        TextError: as `convert_files`, or nothing is left.
    """
    done = folder / f"{name}.json"
    if done.is_file():
        return summary(name, read_counts(done)[name]) + " (before)"
    convert = PairCleaner(languages, normalize=True, tokenize=tokenize)
    files = [stem.with_name(f"{stem.name}.{language}") for language in languages]
    outputs = [folder / f"{name}.{language}" for language in languages]
    counts = convert_files(convert, {name: files}, outputs)
    if not counts[name][KEPT]:
        raise TextError(f"{stem}: no pair is left")
    write_counts(done, counts)
    return summary(name, counts[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Normalizes and tokenizes parallel text of WMT.")
    parser.add_argument("--languages", nargs=2, required=True, metavar=("SRC", "TGT"))
    parser.add_argument(
        "--corpus",
        nargs=2,
        action="append",
        required=True,
        metavar=("PREFIX", "NAME"),
        help="PREFIX.SRC and PREFIX.TGT, to train on",
    )
    parser.add_argument(
        "--set",
        nargs=3,
        action="append",
        required=True,
        metavar=("SRC_FILE", "TGT_FILE", "NAME"),
        help="to evaluate on; SGML where it ends in .sgm",
    )
    parser.add_argument("--no-tokenizer", action="store_true")
    parser.add_argument("out", type=Path, metavar="OUT", help="an existing folder")
    options = parser.parse_args(arguments)
    languages, tokenize = options.languages, not options.no_tokenizer
    tokenized = options.out / "tokenized"
    for folder in (tokenized, options.out / "text"):
        folder.mkdir(exist_ok=True)
    try:
        for *files, name in options.set:
            number = write_set(
                name, [Path(file) for file in files], languages, options.out, tokenize
            )
            print(f"{name}: {number:,} pairs", flush=True)
        for stem, name in options.corpus:
            print(clean_corpus(Path(stem), name, languages, tokenized, tokenize), flush=True)
    except TextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
