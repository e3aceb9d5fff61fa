"""The recipe of spoken digits, run as a user runs it, on digits that are tones."""

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.recipes.scripts import run_script

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "spoken_digits"
ARCH = "ctc_transformer_reparam_postln_36l"


def run(script: str, *arguments: object, cwd: Path, **env: object) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(RECIPE / script, *arguments, cwd=cwd, **env)


def write_recordings(folder: Path) -> None:
    """Ten digits of two speakers, numbered 3 (test), 7 (dev) and 11 (train)."""
    folder.mkdir()
    time = np.arange(4000) / 8000
    for digit in range(10):
        audio = 0.5 * np.sin(2 * np.pi * (300 + 100 * digit) * time)
        for speaker in ("ann", "bob"):
            for number in (3, 7, 11):
                soundfile.write(folder / f"{digit}_{speaker}_{number}.wav", audio, 8000)


@pytest.mark.slow
def test_prepare_train_evaluate(tmp_path: Path) -> None:
    recordings, data, save = tmp_path / "raw data", tmp_path / "out put", tmp_path / "run 1"
    write_recordings(recordings)
    prepared = run("prepare.sh", recordings, data, cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    assert sorted(path.name for path in data.iterdir()) == [
        *("corpus", "data", "lexicon.txt", "lm.arpa"),
    ]
    words = {line.split()[0] for line in (data / "lexicon.txt").read_text().splitlines()}
    assert words == set(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    # Each set costs two starts of fairseq.
    for name in ("test-clean", "test-other"):
        (data / "data" / f"{name}.tsv").unlink()

    tiny = ["--encoder-layers", 1, "--encoder-embed-dim", 16, "--max-update", 1]
    env = {"DATA_DIR": data, "SAVE_DIR": save}
    trained = run("train.sh", ARCH, "adagrad", 1, *tiny, cwd=tmp_path, **env)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    evaluated = run("evaluate.sh", save, cwd=tmp_path, DATA_DIR=data)
    assert evaluated.returncode == 0, evaluated.stderr
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
