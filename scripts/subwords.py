#!/usr/bin/env python3
"""A joint BPE vocabulary by sentencepiece, and text in its pieces, as fairseq-preprocess reads it.

subwords.py train --vocabulary 4000 --model spm.model train.en train.de
subwords.py encode --model spm.model --out pieces train.en train.de     writes pieces/train.en, ...
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece


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
    learn.add_argument("--vocabulary", type=int, required=True, metavar="N", help="pieces")
    learn.add_argument("--model", type=Path, required=True, help="the file to write")
    learn.add_argument("files", type=Path, nargs="+", metavar="TEXT")
    apply = verbs.add_parser("encode", help="write each file in pieces, under its own name")
    apply.add_argument("--model", type=Path, required=True)
    apply.add_argument("--out", type=Path, required=True, help="another folder, which exists")
    apply.add_argument("files", type=Path, nargs="+", metavar="TEXT")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "train":
            train(options.files, options.vocabulary, options.model)
        else:
            for text in options.files:
                count = encode(options.model, text, options.out / text.name)
                print(f"{text.name}: {count:,} pieces", flush=True)
    except SubwordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
