"""The Multi30k recipe's scripts, run as a user runs them, on a tiny made-up corpus."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.training import losses_of
from tests.recipes.hydra import hydra_losses
from tests.recipes.scripts import copy_project, run_script, smoke, train_log

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "multi30k_en_de"
ARCH = "transformer_reparam_deepnorm_6l"
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
def test_smoke(tmp_path: Path) -> None:
    """From made-up text to scores, through a rerun of every step, in paths with spaces."""
    project = copy_project(tmp_path / "pro ject")
    data = project / "data" / "smoke" / "multi30k_en_de"
    save = project / "runs" / "smoke" / "multi30k_en_de" / ARCH / "seed3"

    # What a killed run leaves behind.
    (data.with_name(f"{data.name}.part") / "bin").mkdir(parents=True)
    (data.with_name(f"{data.name}.part") / "half").touch()
    assert "train: 400 pairs" in smoke(project, f"{RECIPE.name}/prepare.sh")
    assert sorted(path.name for path in data.iterdir()) == [
        "bin", "prepared.txt", "spm.model", "text",
    ]  # fmt: skip
    raw = data.with_name(f"{data.name}.raw")
    assert sorted(data.parent.iterdir()) == [data, raw]
    assert {path.name for path in raw.iterdir()} == {
        f"{split}.{language}.gz"
        for split in ("train", "val", "test_2016_flickr")
        for language in ("en", "de")
    }
    plain = gzip.decompress((raw / "val.de.gz").read_bytes())
    assert (data / "text" / "valid.de").read_bytes() == plain

    before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}
    assert "there already" in smoke(project, f"{RECIPE.name}/prepare.sh")
    assert {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")} == before

    arguments = [ARCH, 3, "--max-update", 6, "--log-interval", 1]
    trained = smoke(project, f"{RECIPE.name}/train.sh", *arguments)
    assert f"training {ARCH}, seed 3" in trained
    assert {path.name for path in save.glob("*.pt")} == {"checkpoint_best.pt", "checkpoint_last.pt"}
    line, valid = train_log(save)
    assert valid[-1]["valid_num_updates"] == "6"
    losses = losses_of((save / "train.log").read_text())
    assert len(losses) == 6
    assert hydra_losses(RECIPE.name, line, tmp_path / "hydra") == losses

    options = ["--beam", 2, "--max-len-b", 9]
    evaluated = smoke(project, f"{RECIPE.name}/evaluate.sh", save, *options)
    scores = json.loads((save / "evaluation" / "scores.json").read_text())
    for name in ("valid", "test_2016_flickr"):
        assert scores[name]["sentences"] == 20
        assert scores[name]["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
        assert f"sacreBLEU  {scores[name]['sacrebleu']:.2f}" in evaluated
        assert scores[name]["fairseq"] in evaluated
        hypotheses = (save / "evaluation" / f"hypotheses.{name}.de").read_text()
        assert hypotheses.count("\n") == 20
        assert "▁" not in hypotheses
    assert "beam=2" in (save / "evaluation" / "generate-test.txt").read_text()
    assert not (save / "evaluation.part").exists()


def test_uncompressed_text_is_read(raw: Path, tmp_path: Path) -> None:
    (raw / "val.de").write_bytes(gzip.decompress((raw / "val.de.gz").read_bytes()))
    (raw / "val.de.gz").unlink()
    result = run("prepare.sh", raw, tmp_path / "out", cwd=tmp_path, VOCABULARY=5000)
    assert "valid: 12 pairs" in result.stdout


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
