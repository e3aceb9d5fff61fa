"""Data that the tests of checkpoints share."""

import random
from pathlib import Path

import pytest
from fairseq import options
from fairseq_cli import preprocess


@pytest.fixture(scope="session")
def text_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised text of 16 words: 60 / 10 / 10 lines."""
    folder = tmp_path_factory.mktemp("words")
    draw = random.Random(0)
    for split, lines in (("train", 60), ("valid", 10), ("test", 10)):
        text = "".join(" ".join(draw.choices("abcdefghijklmnop", k=9)) + "\n" for _ in range(lines))
        (folder / split).write_text(text)
    parser = options.get_preprocessing_parser()
    arguments = [
        "--only-source",
        "--trainpref",
        f"{folder}/train",
        "--validpref",
        f"{folder}/valid",
    ]
    arguments += ["--testpref", f"{folder}/test", "--destdir", f"{folder}/bin"]
    preprocess.main(parser.parse_args(arguments))
    return folder / "bin"
