#!/usr/bin/env python3
"""An n-gram language model and a lexicon for beam search, from text.

    ngram_lm.py --order 3 --lexicon lexicon.txt TEXT ARPA

TEXT has a sentence a line, words between spaces. The model is in ARPA format, for KenLM. Where
KenLM's ``lmplz`` is on PATH, that estimates it, by modified Kneser-Ney; else this script does, by
Witten and Bell's interpolation, which needs no n-grams that occur just once and so suits small
closed vocabularies. It prints which.

A model over letters, for ``--decoder lexicon-free``, is one of text whose words are letters:

    sed 's/ /|/g; s/./& /g' TEXT > LETTERS
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
WORD_BOUNDARY = "|"
#: KenLM reads no others, as it is usually compiled.
ORDERS = range(2, 7)

Ngram = tuple[str, ...]


class TextError(Exception):
    """Text without a model; its message is one line for the user."""


def read_sentences(path: Path) -> list[list[str]]:
    """The words of each line that has any.

    Raises:
        TextError: there are none, or one is a symbol of the model.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    sentences = [words for line in lines if (words := line.split())]
    if not sentences:
        raise TextError(f"{path}: no words")
    reserved = {BEGIN, END, UNKNOWN} & set().union(*sentences)
    if reserved:
        raise TextError(f"{path}: {min(reserved)} is a symbol of the model, not a word")
    return sentences


def count_ngrams(sentences: Iterable[Sequence[str]], order: int) -> Counter[Ngram]:
    """How often each n-gram of 1 to `order` words occurs; `<s>` only begins one, `</s>` ends it."""
    counts: Counter[Ngram] = Counter()
    for sentence in sentences:
        words = (BEGIN, *sentence, END)
        for end in range(2, len(words) + 1):
            counts.update(words[begin:end] for begin in range(max(0, end - order), end))
    return counts


def witten_bell(counts: Counter[Ngram]) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """Estimates a model (Witten and Bell 1991, method C, interpolated).

    With c(h) the number of words that followed the history h, t(h) that of different ones, and h'
    the history without its first word,

        p(w | h) = (c(hw) + t(h) p(w | h')) / (c(h) + t(h)),

    and in front of everything a uniform distribution over the words, `</s>` and `<unk>`.

    Returns:
        p(w | h) of each n-gram hw that occurred and of `<unk>`, and t(h) / (c(h) + t(h)) of each
        history: what p(w | h') is multiplied with if hw did not occur.
    """
    total: Counter[Ngram] = Counter()
    types: Counter[Ngram] = Counter()
    for ngram, count in counts.items():
        total[ngram[:-1]] += count
        types[ngram[:-1]] += 1
    backoff = {history: types[history] / (total[history] + types[history]) for history in types}
    uniform = 1 / (types[()] + 1)
    probability = {(UNKNOWN,): backoff[()] * uniform}
    for ngram in sorted(counts, key=len):
        history = ngram[:-1]
        shorter = probability[ngram[1:]] if history else uniform
        seen = counts[ngram] / (total[history] + types[history])
        probability[ngram] = seen + backoff[history] * shorter
    return probability, backoff


def write_arpa(
    path: Path, probability: dict[Ngram, float], backoff: dict[Ngram, float], order: int
) -> None:
    """Writes a model of `witten_bell` in ARPA format, in log10."""
    lines: dict[int, list[str]] = {length: [] for length in range(1, order + 1)}
    lines[1].append(f"-99\t{BEGIN}\t{math.log10(backoff[BEGIN,]):.7f}")
    for ngram in sorted(probability):
        line = f"{math.log10(probability[ngram]):.7f}\t{' '.join(ngram)}"
        if ngram in backoff:
            line += f"\t{math.log10(backoff[ngram]):.7f}"
        lines[len(ngram)].append(line)
    with path.open("w", encoding="utf-8") as stream:
        print("\\data\\", file=stream)
        for length, entries in lines.items():
            print(f"ngram {length}={len(entries)}", file=stream)
        for length, entries in lines.items():
            print(f"\n\\{length}-grams:", *entries, sep="\n", file=stream)
        print("\n\\end\\", file=stream)


def write_lexicon(path: Path, words: Iterable[str]) -> None:
    """Writes the spelling of each word: `the`, a tab, `t h e |`.

    Raises:
        TextError: a word has the word boundary in it.
    """
    words = sorted(words)
    wrong = [word for word in words if WORD_BOUNDARY in word]
    if wrong:
        raise TextError(f"{wrong[0]!r} cannot be spelled: {WORD_BOUNDARY} ends a word")
    lines = [f"{word}\t{' '.join(word)} {WORD_BOUNDARY}\n" for word in words]
    path.write_text("".join(lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Estimates an n-gram language model.")
    parser.add_argument("--order", type=int, choices=ORDERS, default=3, help="longest n-gram")
    parser.add_argument("--lexicon", type=Path, help="where to write the spelling of all words")
    parser.add_argument("text", type=Path, metavar="TEXT", help="a sentence a line")
    parser.add_argument("arpa", type=Path, metavar="ARPA", help="where to write the model")
    options = parser.parse_args(arguments)
    try:
        sentences = read_sentences(options.text)
        words = set().union(*sentences)
        if options.lexicon is not None:
            write_lexicon(options.lexicon, words)
        lmplz = shutil.which("lmplz")
        if lmplz is None:
            counts = count_ngrams(sentences, options.order)
            write_arpa(options.arpa, *witten_bell(counts), options.order)
        else:
            # With a small vocabulary no n-gram may occur just once, as its discounts need.
            command = [lmplz, "--order", str(options.order), "--discount_fallback"]
            command += ["--text", str(options.text), "--arpa", str(options.arpa)]
            subprocess.run(command, check=True)
    except (TextError, OSError, UnicodeDecodeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    estimator = "Witten-Bell" if lmplz is None else lmplz
    print(
        f"{options.arpa}: order {options.order}, {len(words)} words, {len(sentences)} sentences, "
        f"by {estimator}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
