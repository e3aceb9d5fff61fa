#!/usr/bin/env python3
"""A joint BPE vocabulary, and text in its pieces, as fairseq-preprocess reads it.

subwords.py train --vocabulary 4000 --model spm.model train.en train.de
subwords.py encode --model spm.model --out pieces train.en train.de     writes pieces/train.en, ...
subwords.py pairs --model spm.model --languages en de --out pieces/train text/a text/b

The last is for text by the million sentences: it works on all cores, and puts text/a.en and
text/b.en together as pieces/train.en, and likewise the other language, without the pairs that
Moses's clean-corpus-n would leave out with "-ratio 1.5" and lengths of 1 to 250; with --keep-all,
with every pair. The pieces are sentencepiece's; with --bpe subword_nmt those of subword-nmt, for
text that is tokenized.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
from pairs import EMPTY, KEPT, convert_files, read_counts, summary, write_counts
from parallel_text import TextError
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import get_vocabulary, learn_bpe

BPES = ("sentencepiece", "subword_nmt")
LONGEST = 250
RATIO = 1.5


class SubwordError(Exception):
    """What cannot be done with this text or vocabulary; its message is one line for the user."""


def _lines(path: Path) -> Iterator[str]:
    # newline="\n": a lone carriage return or another Unicode line separator does not end a line.
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield line.rstrip("\n")


def train(files: Sequence[Path], vocabulary: int, model: Path) -> None:
    """Learns one BPE vocabulary from all files together and writes the model.

    Every character of the text gets a piece, so the text it is learned from has no unknown pieces.

    Args:
        files: UTF-8 text, one sentence a line.
        vocabulary: number of pieces, sentencepiece's three special ones included.
        model: the file to write.

    Raises:
        SubwordError: the text is too small for so many pieces, or has too many characters.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for path in files for line in _lines(path)),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocabulary,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # sentencepiece puts the place in its source and the condition, in brackets, first.
        reason = str(error).rpartition("] ")[2].strip()
        raise SubwordError(f"cannot learn {vocabulary} pieces of this text: {reason}") from None
    model.write_bytes(written.getvalue())


def train_subword_nmt(files: Sequence[Path], merges: int, model: Path) -> None:
    """Learns merges of the words of all files together and writes them, one a line.

    Args:
        files: UTF-8 text, words between spaces.
        merges: how many; fewer where the text has no more pairs that occur twice.
        model: the file to write.
    """
    words = Counter[str]()
    for path in files:
        with path.open(encoding="utf-8") as stream:
            words += get_vocabulary(stream, num_workers=os.cpu_count() or 1)
    with model.open("w", encoding="utf-8", newline="\n") as stream:
        learn_bpe(
            [f"{word} {count}" for word, count in words.items()], stream, merges, is_dict=True
        )


class PairEncoder:
    """A pair of sentences in pieces, or why it is left out.

    Args:
        model: what `train` or `train_subword_nmt` wrote.
        bpe: which of the two, one of `BPES`.
        keep_all: whether to leave nothing out for its length.
    """

    def __init__(self, model: Path, bpe: str, keep_all: bool) -> None:
        if bpe == "subword_nmt":
            with model.open(encoding="utf-8") as codes:
                self._model = BPE(codes)
        else:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.keep_all = keep_all

    def __call__(self, source: str, target: str) -> tuple[str, str] | str:
        source, target = self._pieces(source), self._pieces(target)
        lengths = sorted((len(source.split()), len(target.split())))
        if lengths[0] == 0:
            return EMPTY
        if not self.keep_all and lengths[1] > LONGEST:
            return f"longer than {LONGEST} pieces"
        if not self.keep_all and lengths[1] > RATIO * lengths[0]:
            return f"with lengths of a ratio above {RATIO}"
        return source, target

    def _pieces(self, sentence: str) -> str:
        if isinstance(self._model, BPE):
            return str(self._model.segment(sentence))
        return " ".join(self._model.encode(sentence, out_type=str))


def encode_pairs(
    encoder: PairEncoder, stems: Sequence[Path], out: Path, languages: Sequence[str]
) -> list[str]:
    """Writes several corpora in pieces as one, unless that was done before.

    Args:
        encoder: what to do with a pair.
        stems: each corpus's two files, without the languages that their names end in.
        out: likewise what to write.
        languages: of the source and of the target.

    Returns:
        A line about each corpus.

    Raises:
        TextError: a file is missing, two differ in length, no pair is left of a corpus, or one is
            left out of what is to be kept.
    """
    done = out.with_name(f"{out.name}.json")
    if done.is_file():
        return [summary(*counts) + " (before)" for counts in read_counts(done).items()]

    def files(stem: Path) -> list[Path]:
        return [stem.with_name(f"{stem.name}.{language}") for language in languages]

    counts = convert_files(encoder, {stem.name: files(stem) for stem in stems}, files(out))
    for name, count in counts.items():
        if not count[KEPT] or (encoder.keep_all and count[KEPT] < count.total()):
            raise TextError(summary(name, count))
    write_counts(done, counts)
    return [summary(name, count) for name, count in counts.items()]


def encode(model: Path, text: Path, pieces: Path) -> int:
    """Writes a text file as pieces separated by spaces, line by line.

    Returns:
        The number of pieces.

    Raises:
        SubwordError: a line has no pieces, because it holds only characters that normalization
            drops (such as zero-width spaces).
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    total = 0
    with pieces.open("w", encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(_lines(text), start=1):
            encoded = processor.encode(line, out_type=str)
            if not encoded:
                raise SubwordError(f"{text.name}: line {number}: only invisible characters")
            total += len(encoded)
            stream.write(" ".join(encoded) + "\n")
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Learns and applies a joint BPE vocabulary.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    learn = verbs.add_parser("train", help="learn a vocabulary from all files together")
    learn.add_argument(
        "--vocabulary", type=int, required=True, metavar="N", help="pieces, or merges"
    )
    learn.add_argument("--model", type=Path, required=True, help="the file to write")
    learn.add_argument("--bpe", choices=BPES, default=BPES[0])
    learn.add_argument("files", type=Path, nargs="+", metavar="TEXT")
    apply = verbs.add_parser("encode", help="write each file in pieces, under its own name")
    apply.add_argument("--model", type=Path, required=True)
    apply.add_argument("--out", type=Path, required=True, help="another folder, which exists")
    apply.add_argument("files", type=Path, nargs="+", metavar="TEXT")
    pairs = verbs.add_parser("pairs", help="write corpora in pieces, as one")
    pairs.add_argument("--model", type=Path, required=True)
    pairs.add_argument("--bpe", choices=BPES, default=BPES[0])
    pairs.add_argument("--languages", nargs=2, required=True, metavar=("SRC", "TGT"))
    pairs.add_argument("--keep-all", action="store_true", help="pairs of any length")
    pairs.add_argument("--out", type=Path, required=True, help="files to write, without .SRC")
    pairs.add_argument("stems", type=Path, nargs="+", metavar="TEXT", help="without .SRC and .TGT")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "train":
            learn_pieces = train if options.bpe == "sentencepiece" else train_subword_nmt
            learn_pieces(options.files, options.vocabulary, options.model)
        elif options.verb == "pairs":
            encoder = PairEncoder(options.model, options.bpe, options.keep_all)
            for line in encode_pairs(encoder, options.stems, options.out, options.languages):
                print(line, flush=True)
        else:
            for text in options.files:
                count = encode(options.model, text, options.out / text.name)
                print(f"{text.name}: {count:,} pieces", flush=True)
    except (SubwordError, TextError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
