"""The Multi30k recipe's scripts, run as a user runs them, on a tiny made-up corpus."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.scripts import run_script

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "multi30k_en_de"
ARCH = "transformer_reparam_deepnorm_6l"
TINY = [
    *("--encoder-layers", 1, "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 16),
    *("--decoder-layers", 1, "--encoder-attention-heads", 2, "--decoder-attention-heads", 2),
    *("--max-tokens", 400, "--warmup-updates", 1),
]
WORDS = {
    "two": "zwei", "red": "rote", "young": "junge", "dogs": "Hunde", "cats": "Katzen",
    "birds": "Vögel", "run": "laufen", "sleep": "schlafen", "here": "hier", "today": "heute",
}  # fmt: skip


def run(script: str, *arguments: object, cwd: Path, **env: object) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(RECIPE / script, *arguments, cwd=cwd, **env)


def write_corpus(raw: Path) -> None:
    """Writes the recipe's six files: the target is the source in reverse order, word by word."""
    raw.mkdir(parents=True)
    random.seed(1)
    for name, count in (("train", 120), ("val", 12), ("test_2016_flickr", 10)):
        sources = [random.choices(list(WORDS), k=random.randint(2, 6)) for _ in range(count)]
        targets = [[WORDS[word] for word in reversed(source)] for source in sources]
        for language, sentences in (("en", sources), ("de", targets)):
            text = "".join(" ".join(sentence) + " .\n" for sentence in sentences)
            (raw / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "raw data")
    return tmp_path / "raw data"


def change(path: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(edit(lines))))


def replaced(number: int, line: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[: number - 1], line, *lines[number:]]


@pytest.mark.slow
def test_prepare_train_evaluate(tmp_path: Path) -> None:
    """From raw text to scores, through a rerun of every step, in paths with spaces."""
    raw, data, save = tmp_path / "raw data", tmp_path / "out put" / "m30k", tmp_path / "run 1"
    write_corpus(raw)
    plain = gzip.decompress((raw / "val.de.gz").read_bytes())
    (raw / "val.de.gz").unlink()
    (raw / "val.de").write_bytes(plain)
    # What a killed run leaves behind.
    (tmp_path / "out put" / "m30k.part" / "bin").mkdir(parents=True)
    (tmp_path / "out put" / "m30k.part" / "half").touch()

    prepared = run("prepare.sh", raw, data, cwd=tmp_path, VOCABULARY=60)
    assert prepared.returncode == 0, prepared.stderr
    assert "train: 120 pairs" in prepared.stdout
    assert sorted(path.name for path in data.iterdir()) == [
        "bin", "prepared.txt", "spm.model", "text",
    ]  # fmt: skip
    assert [path.name for path in data.parent.iterdir()] == ["m30k"]
    assert (data / "text" / "valid.de").read_bytes() == plain

    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    again = run("prepare.sh", raw, data, cwd=tmp_path)
    assert again.returncode == 0
    assert "there already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before

    def train(updates: int) -> str:
        arguments = [ARCH, 3, *TINY, "--max-update", updates]
        trained = run("train.sh", *arguments, cwd=tmp_path, DATA_DIR=data, SAVE_DIR=save, NARROW=1)
        assert trained.returncode == 0, trained.stdout + trained.stderr
        return trained.stdout

    assert f"training {ARCH}, seed 3" in train(2)
    assert f"resuming {ARCH}, seed 3" in train(6)
    assert "this run has ended" in train(6)
    assert {path.name for path in save.glob("*.pt")} == {"checkpoint_best.pt", "checkpoint_last.pt"}
    log = (save / "train.log").read_text()
    updates = [
        json.loads(line[line.index("{") :])["valid_num_updates"]
        for line in log.splitlines()
        if "| valid | {" in line
    ]
    assert updates[-1] == "6"
    assert "Loaded checkpoint" in log

    evaluated = run("evaluate.sh", save, "--beam", 2, "--max-len-b", 9, cwd=tmp_path, DATA_DIR=data)
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads((save / "evaluation" / "scores.json").read_text())
    for name, count in (("valid", 12), ("test_2016_flickr", 10)):
        assert scores[name]["sentences"] == count
        assert scores[name]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
        assert f"sacreBLEU  {scores[name]['sacrebleu']:.2f}" in evaluated.stdout
        assert scores[name]["fairseq"] in evaluated.stdout
        hypotheses = (save / "evaluation" / f"hypotheses.{name}.de").read_text()
        assert hypotheses.count("\n") == count
        assert "▁" not in hypotheses
    assert "beam=2" in (save / "evaluation" / "generate-test.txt").read_text()
    assert not (save / "evaluation.part").exists()


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("val.de.gz", None, "val.de.gz: no such file"),
        ("train.de.gz", lambda lines: lines[:-2], "train.de.gz: line 119: missing"),
        ("val.en.gz", lambda lines: lines[:-1], "val.en.gz: line 12: missing"),
        ("train.en.gz", replaced(7, b"\n"), "train.en.gz: line 7: empty"),
        ("val.de.gz", replaced(12, b" \t\xc2\xa0\n"), "val.de.gz: line 12: empty"),
        ("test_2016_flickr.en.gz", lambda lines: [*lines, b"\n"], "flickr.en.gz: line 11: empty"),
        ("test_2016_flickr.de.gz", lambda lines: [], "flickr.de.gz: line 1: the file is empty"),
        ("train.de.gz", replaced(5, b"V\xf6gel\n"), "train.de.gz: line 5: not UTF-8 (byte 0xf6"),
    ],
)
def test_prepare_refuses(
    raw: Path,
    tmp_path: Path,
    name: str,
    edit: Callable[[list[bytes]], list[bytes]] | None,
    message: str,
) -> None:
    """A fault of the text: one line that names file and line, and nothing left behind."""
    if edit is None:
        (raw / name).unlink()
    else:
        change(raw / name, edit)
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path, VOCABULARY=60)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [raw.name]


def test_prepare_refuses_a_damaged_archive(raw: Path, tmp_path: Path) -> None:
    damaged = raw / "train.en.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path, VOCABULARY=60)
    assert result.returncode == 1
    assert "train.en.gz: line" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [raw.name]


def test_prepare_refuses_a_vocabulary_too_large_for_the_text(raw: Path, tmp_path: Path) -> None:
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path, VOCABULARY=5000)
    assert result.returncode == 1
    assert "cannot learn 5000 pieces" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [raw.name]


def test_prepare_keeps_a_folder_that_it_did_not_make(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1
    assert "did not make it" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_train_and_evaluate_say_what_is_missing(tmp_path: Path) -> None:
    nothing = {"DATA_DIR": tmp_path / "none", "SAVE_DIR": tmp_path / "run"}
    for script, *arguments in (("train.sh", ARCH, 1), ("evaluate.sh", tmp_path / "run")):
        result = run(script, *arguments, cwd=tmp_path, **nothing)
        assert result.returncode == 1
        assert "run prepare.sh first" in result.stderr
    assert list(tmp_path.iterdir()) == []
    result = run("train.sh", ARCH, "one", cwd=tmp_path, **nothing)
    assert result.returncode == 1
    assert "seed" in result.stderr
