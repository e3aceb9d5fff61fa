"""A training that is killed at any moment, or finds the disk full, loses its last steps at most."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sigma_fairseq.report.runs import load_run
from tests.conftest import USER_DIR, run_fairseq

KILLS, UPDATES = 16, 14


def words(data: Path, save_dir: Path, *more: str) -> list[str]:
    return [
        *(str(data), "--save-dir", str(save_dir), "--user-dir", USER_DIR, "--cpu"),
        *("--arch", "transformer_reparam_postln_6l", "--encoder-layers", "1"),
        *("--decoder-layers", "1", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32"),
        *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--seed", "3"),
        *("--share-all-embeddings", "--dropout", "0.1", "--optimizer", "adam", "--lr", "0.01"),
        *("--criterion", "monitored_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
        *("--monitor-interval", "1", "--batch-size", "30", "--num-workers", "0"),
        *("--required-batch-size-multiple", "1", "--max-update", str(UPDATES), "--no-progress-bar"),
        # As many files as fairseq can write of a checkpoint.
        *("--save-interval-updates", "1", "--keep-interval-updates", "2"),
        *("--keep-last-epochs", "1", "--keep-best-checkpoints", "1", *more),
    ]


def what_matters(folder: Path) -> dict[str, Any]:
    """Of the last checkpoint: all but times."""
    state = torch.load(folder / "checkpoint_last.pt")
    return {
        "model": state["model"],
        "optimizer": state["last_optimizer_state"],
        "scheduler": state["optimizer_history"][-1],
        "position": state["extra_state"]["train_iterator"],
        "best": state["extra_state"].get("best"),
    }


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_equal(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_equal(*pair, f"{place}.{number}")
    else:
        assert found == expected, place


def train(data: Path, folder: Path, kills: int) -> str:
    """Trains in a folder through so many kills, and returns what was printed."""
    result = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.integration.killed", str(kills)),
            *words(data, folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def alone(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never killed."""
    folder = tmp_path_factory.mktemp("trained") / "alone"
    train(data_bin, folder, 0)
    return folder


def test_killed_at_random_moments_it_ends_as_if_it_never_was(
    data_bin: Path, alone: Path, tmp_path: Path
) -> None:
    printed = train(data_bin, tmp_path, KILLS)
    left = re.findall(r"status (\d+): \d+ files, broken: (.*)", printed)
    assert len(left) == KILLS
    assert sum(status == "9" for status, _ in left) > KILLS / 2
    assert any("checkpoint_last.pt" in broken for _, broken in left)
    assert "was cut off in the writing: going on from" in printed
    assert_equal(what_matters(tmp_path), what_matters(alone))
    ours, theirs = (load_run(folder).records for folder in (tmp_path, alone))
    assert theirs["update"].tolist() == list(range(UPDATES))
    # Norms are found anew from a start of their own; these are as they are.
    for field in ("learning_rate", "entropy", "entropy_min", "gamma", "gradient_norm"):
        np.testing.assert_array_equal(ours[field], theirs[field], err_msg=field)


def test_a_full_disk_leaves_the_checkpoint_before(
    data_bin: Path, alone: Path, tmp_path: Path
) -> None:
    """fairseq writes beside the file's place first; /dev/full takes nothing."""
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run" / "checkpoint_last.pt.tmp").symlink_to("/dev/full")
    more = ("--disable-validation", "--no-epoch-checkpoints", "--save-interval-updates", "0")
    options = words(data_bin, tmp_path / "run", *more, "--max-update", str(UPDATES + 2))
    result = run_fairseq("train", *options, check=False)
    assert result.returncode
    assert "No space left on device" in result.stdout + result.stderr
    assert_equal(what_matters(tmp_path / "run"), what_matters(alone))
