"""Mean, standard deviation and DV of several seeds."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import seed_scores  # noqa: E402

FALLING = [12 * math.exp(-step / 10) + 3 for step in range(40)]
BLOWN_UP = FALLING[:20] + [11.0] * 20


def write_run(folder: Path, losses: list[float], bleu: float | None, end: str = "") -> Path:
    """A training's log and scores, as the recipe's scripts leave them."""
    (folder / "evaluation").mkdir(parents=True)
    entry = "2024-01-01 | INFO | train_inner | "
    points = [
        json.dumps({"loss": f"{loss:.3f}", "num_updates": f"{100 * step}", "lr": "0.001"})
        for step, loss in enumerate(losses, start=1)
    ]
    (folder / "train.log").write_text("".join(f"{entry}{point}\n" for point in points) + end)
    if bleu is not None:
        sets = {"valid": bleu + 6, "test": bleu}
        scores = {name: {"fairseq_bleu": b, "sacrebleu": b - 1} for name, b in sets.items()}
        (folder / "evaluation" / "scores.json").write_text(json.dumps(scores))
    return folder


def test_mean_deviation_and_dv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bleus = [27.11, 27.95, 27.52]
    saves = [
        write_run(tmp_path / str(seed), FALLING, bleu) for seed, bleu in enumerate(bleus, start=1)
    ]
    # Its loss grew and did not come back; the translations of its best checkpoint do not count.
    saves.append(write_run(tmp_path / "4", BLOWN_UP, 20.0))
    assert seed_scores.main([str(save) for save in saves]) == 0
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    titles = ["valid BLEU", "valid sacreBLEU", "test BLEU", "test sacreBLEU"]
    assert lines[0] == ["training", "verdict", *titles]
    assert lines[2] == [str(saves[0]), "healthy", "33.11", "32.11", "27.11", "26.11"]
    assert lines[5][:2] == [str(saves[3]), "diverged"]
    deviation = f"± {np.std(bleus, ddof=1):.2f}"
    means = [f"{np.mean(bleus) + shift:.2f} {deviation}" for shift in (6, 5, 0, -1)]
    assert lines[6] == ["mean of 3", "DV 1/4", *means]


@pytest.mark.parametrize(
    ("losses", "end", "finished", "verdict"),
    [
        (FALLING, "\nFloatingPointError: gradients are Nan/Inf\n", False, "diverged"),
        # Given up once, then resumed and finished.
        (FALLING, "\nFloatingPointError: gradients are Nan/Inf\n", True, "healthy"),
        ([*FALLING, math.nan], "", False, "diverged"),
        (FALLING, "", False, "healthy"),
    ],
)
def test_verdict(
    losses: list[float], end: str, finished: bool, verdict: str, tmp_path: Path
) -> None:
    save = write_run(tmp_path / "run", losses, None, end)
    if finished:
        (save / "finished.txt").touch()
    assert seed_scores.verdict_of(save) == verdict


def test_all_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = write_run(tmp_path / "run", BLOWN_UP, None)
    assert seed_scores.main([str(save)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| mean of 0 | DV 1/1 |"


def test_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seed_scores.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is not a run: it has neither a monitor.json nor a train.log\n"
    )
