"""The recipe of spoken digits, run as a user runs it."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.recipes.scripts import RECIPES, copy_project, run_script, smoke

RECIPE = RECIPES / "spoken_digits"
ARCH = "ctc_transformer_reparam_postln_36l"


def run(script: str, *arguments: object, cwd: Path, **env: object) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(RECIPE / script, *arguments, cwd=cwd, **env)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "pro ject")
    data = project / "data" / "smoke" / "spoken_digits"
    save = project / "runs" / "smoke" / "spoken_digits" / ARCH / "adagrad" / "seed1"
    smoke(project, "spoken_digits/prepare.sh")
    assert sorted(path.name for path in data.iterdir()) == [
        *("corpus", "data", "lexicon.txt", "lm.arpa"),
    ]
    words = {line.split()[0] for line in (data / "lexicon.txt").read_text().splitlines()}
    assert words == set(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    smoke(project, "spoken_digits/train.sh", ARCH, "adagrad", 1, "--max-update", 1)
    smoke(project, "spoken_digits/evaluate.sh", save)
    for decoder in ("greedy", "lexicon"):
        scores = json.loads((save / "evaluation" / decoder / "scores.json").read_text())
        assert list(scores) == ["dev-clean"]
        generated = (save / "evaluation" / decoder / "generate-dev-clean.txt").read_text()
        hypotheses = [line.split("\t") for line in generated.splitlines() if line[:2] == "D-"]
        assert len(hypotheses) == scores["dev-clean"]["utterances"]
        if decoder == "lexicon":
            assert {word for _, _, text in hypotheses for word in text.split()} <= words


def test_options_replace_the_recipes_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("prepared.txt", "train-clean-100.tsv", "dev-clean.tsv"):
        (tmp_path / "data" / name).touch()
    arguments = [ARCH, "lars", 2, "--lr", 7]
    shown = run("train.sh", *arguments, cwd=tmp_path, DATA_DIR=tmp_path, DRY_RUN=1)
    assert shown.returncode == 0, shown.stderr
    words = shlex.split(shown.stdout)
    assert words[:2] == ["fairseq-train", f"{tmp_path}/data"]
    assert words[-2:] == ["--lr", "7"]
    assert "--cpu" in words
    root = RECIPE.parents[1]
    saved = words[words.index("--save-dir") + 1]
    assert saved == f"{root}/runs/spoken_digits/{ARCH}/lars/seed2"


def test_missing_recordings_and_data(tmp_path: Path) -> None:
    result = run("prepare.sh", tmp_path / "none.tar", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path}/none.tar: No such file or directory\n"
    for script, *arguments in (("train.sh", ARCH, "lars", 1), ("evaluate.sh", tmp_path / "run")):
        result = run(script, *arguments, cwd=tmp_path, DATA_DIR=tmp_path / "out")
        assert result.returncode == 1
        assert "run prepare.sh first" in result.stderr
