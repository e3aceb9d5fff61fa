"""The WikiText-2 recipe: what it hands on to the scripts of WikiText-103."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.recipes.scripts import ROOT, copy_project, options_of, run_script, smoke

RECIPE = ROOT / "recipes" / "wikitext2"
ARCH = "transformer_lm_preln_wiki103_32l"


def run(script: str, *arguments: object, cwd: Path, **env: object) -> subprocess.CompletedProcess:
    """Runs a script of the recipe; see `run_script`."""
    return run_script(RECIPE / script, *arguments, cwd=cwd, **env)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    smoke(project, "wikitext2/prepare.sh")
    trained = smoke(project, "wikitext2/train.sh", ARCH, 1, 0.5, "1e-4")
    save = project / "runs" / "smoke" / "wikitext2" / ARCH / "lr0.5-wd1e-4" / "seed1"
    assert f"training {ARCH}, learning rate 0.5, weight decay 1e-4, seed 1, in {save}" in trained
    smoke(project, "wikitext2/evaluate.sh", save, SPLITS="valid")
    scores = json.loads((save / "evaluation" / "scores.json").read_text())
    # Less than a uniform guess among more than a hundred words.
    assert 1 < scores["valid"]["perplexity"] < 100
    assert not (project / "runs" / "smoke" / "wikitext103").exists()


def test_options_replace_the_recipes_own(tmp_path: Path) -> None:
    (tmp_path / "prepared.txt").touch()
    arguments = [ARCH, 2, 0.5, "1e-4", "--max-update", 70, "--dropout", 0.2]
    shown = run("train.sh", *arguments, cwd=tmp_path, DATA_DIR=tmp_path, DRY_RUN=1)
    assert shown.returncode == 0, shown.stderr
    assert shlex.split(shown.stdout)[:2] == ["fairseq-train", f"{tmp_path}/bin"]
    options = options_of(shown.stdout)
    expected = {
        **{"arch": ARCH, "seed": "2", "lr": "0.5", "weight-decay": "1e-4", "optimizer": "nag"},
        **{"max-update": "70", "dropout": "0.2", "tokens-per-sample": "512"},
        # The period is what is left of the updates after the warmup.
        "lr-period-updates": "-1",
        "save-dir": f"{ROOT}/runs/wikitext2/{ARCH}/lr0.5-wd1e-4/seed2",
    }
    assert {name: options[f"--{name}"] for name in expected} == {
        name: [value] for name, value in expected.items()
    }
    # Fewer layers and less width than the architecture's; blocks fit into a batch.
    assert int(options["--decoder-layers"][0]) < 16
    assert int(options["--decoder-embed-dim"][0]) < 1024
    assert int(options["--max-tokens"][0]) % 512 == 0
    assert "--cpu" in options


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    """DOWNLOAD=1 would be WikiText-103."""
    env = {"DOWNLOAD": 1, "MIRROR": f"file://{tmp_path}/none"}
    result = run("prepare.sh", tmp_path / "raw", tmp_path / "out", cwd=tmp_path, **env)
    assert result.returncode == 1
    assert result.stderr == f"wikitext103: error: {tmp_path}/raw: no such folder\n"
    assert list(tmp_path.iterdir()) == []


def test_missing_data_and_checkpoint(tmp_path: Path) -> None:
    env = {"DATA_DIR": tmp_path / "data"}
    for script, *arguments in (("train.sh", ARCH, 1, 1, 0), ("evaluate.sh", tmp_path / "run")):
        result = run(script, *arguments, cwd=tmp_path, **env)
        assert result.returncode == 1
        assert f"{tmp_path}/data: no prepared data; run prepare.sh first" in result.stderr
