"""Text cut into pieces by a byte-pair encoding of its own training part."""

from collections.abc import Iterable
from pathlib import Path

#: Folders with text as written, and cut; the model that cuts it.
TEXT, PIECES, MODEL = "text", "pieces", "bpe.model"


def cut_text(folder: Path, train: Iterable[str], vocabulary: int) -> None:
    """Learns `bpe.model` from some files of `text/` and writes all of them, cut, to `pieces/`.

    Args:
        folder: where all three are.
        train: names of the files to learn from.
        vocabulary: pieces to learn.
    """
    import sentencepiece

    text, pieces = folder / TEXT, folder / PIECES
    sentencepiece.SentencePieceTrainer.train(
        input=[str(text / name) for name in train],
        model_prefix=str((folder / MODEL).with_suffix("")),
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=1.0,
        # The pieces, joined, are the text as it was.
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    bpe = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL))
    pieces.mkdir()
    for file in text.iterdir():
        lines = file.read_text(encoding="utf-8").splitlines()
        cut = "".join(" ".join(line) + "\n" for line in bpe.encode(lines, out_type=str))
        (pieces / file.name).write_text(cut, encoding="utf-8")
