"""The check of text in WikiText's layout."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "wikitext.py"


def run(raw: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), str(raw), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """One split under each kind of name."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    train = " \n = A = \n \n a  b\ta <unk> \r\nc\u2028d"
    (folder / "wiki.train.tokens").write_bytes(train.encode())
    (folder / "wiki.valid.tokens.gz").write_bytes(gzip.compress(b"a x <unk> a\n"))
    (folder / "test.txt").write_text("b c d a\n")
    return folder


def test_counts_and_copies(raw: Path, tmp_path: Path) -> None:
    """Words are what Python splits at, as fairseq does; lines are what ends with a line feed."""
    result = run(raw, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "train: 5 lines, 9 words, 11.11% <unk>",
        "valid: 1 lines, 4 words, 50.00% <unk>",
        "test: 1 lines, 4 words, 0.00% <unk>",
    ]
    copies = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert copies == {
        "train.txt": b"\n= A =\n\na b a <unk>\nc d\n",
        "valid.txt": b"a x <unk> a\n",
        "test.txt": b"b c d a\n",
    }


def test_faults(raw: Path, tmp_path: Path) -> None:
    (raw / "test.txt").write_text("\n \n")
    result = run(raw, tmp_path / "out")
    assert (result.returncode, result.stderr) == (1, f"error: {raw}/test.txt: no words\n")
    (raw / "test.txt").unlink()
    result = run(raw, tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {raw}: no wiki.test.tokens and no test.txt")
    assert result.stderr.count("\n") == 1
