"""The verb `sharpness`: the real command, what it hands on, and how it fails."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sigma_fairseq.cli import main
from sigma_fairseq.monitor import sharpness
from sigma_fairseq.monitor.sharpness import OptimizerSettings, Sharpness, SharpnessError
from tests.conftest import USER_DIR

RESULT = Sharpness(
    eigenvalues=[2.0],
    optimizer=OptimizerSettings("sgd", 0.5, 0.0),
    criterion="cross_entropy",
    loss=1.0,
    sentences=2,
    tokens=9,
    parameters=5,
)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The command quietens fairseq's log for the rest of its process."""
    logger = logging.getLogger("fairseq")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command calls the measurement with; an exception under "raises" is raised."""
    call: dict[str, Any] = {}

    def measure(checkpoint: str, data: str, **arguments: Any) -> Sharpness:
        arguments.pop("on_product")()
        call.update(arguments, checkpoint=checkpoint, data=data)
        if "raises" in call:
            raise call["raises"]
        return RESULT

    monkeypatch.setattr(sharpness, "measure_sharpness", measure)
    return call


def test_of_a_training(fairseq: Callable[..., Any], data_bin: Path, tmp_path: Path) -> None:
    fairseq(
        "train",
        *(str(data_bin), "--user-dir", USER_DIR, "--cpu", "--save-dir", str(tmp_path)),
        *("--arch", "transformer_preln_6l", "--encoder-layers", "1", "--decoder-layers", "1"),
        *("--encoder-embed-dim", "8", "--encoder-ffn-embed-dim", "8"),
        *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
        *("--optimizer", "sgd", "--momentum", "0.5", "--lr", "0.1", "--lr-scheduler", "fixed"),
        *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
        *("--batch-size", "64", "--max-update", "2", "--num-workers", "0", "--disable-validation"),
    )
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "sigma_fairseq.cli", "sharpness"),
            *(str(tmp_path / "checkpoint_last.pt"), str(data_bin), "--cpu"),
            *("--tokens", "60", "--max-tokens", "30", "--count", "2", "--subset", "valid"),
        ],
        capture_output=True,
        text=True,
        cwd=Path(USER_DIR).parent,
    )
    assert ran.returncode == 0, ran.stderr
    ranks = re.findall(r"^ +(\d) +(\S+) +(\S+)%$", ran.stdout, re.M)
    assert [rank for rank, _, _ in ranks] == ["1", "2"]
    for _, eigenvalue, share in ranks:
        assert float(share) == pytest.approx(float(eigenvalue) / 30 * 100, abs=0.01)
    assert "threshold   30: sgd, learning rate 0.1, momentum 0.5\n" in ran.stdout
    assert "nats, label_smoothed_cross_entropy, dropout off\n" in ran.stdout
    assert "fairseq.data" not in ran.stderr


def test_options_are_handed_on(call: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    line = "sharpness a.pt bin --count 3 --subset valid --tokens 9 --max-tokens 8 --tolerance 0.1"
    assert main([*line.split(), "--cpu"]) == 0
    assert capsys.readouterr().out == RESULT.table() + "\n"
    assert call == {
        **{"checkpoint": "a.pt", "data": "bin", "count": 3, "subset": "valid", "tokens": 9},
        **{"max_tokens": 8, "tolerance": 0.1, "device": torch.device("cpu")},
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sharpness a.pt", "the following arguments are required: DATA"),
        ("sharpness a.pt bin --count 0", "'0' is not a whole number from 1 on"),
        ("sharpness a.pt bin --tokens many", "'many' is not a whole number from 1 on"),
        ("sharpness a.pt bin --max-tokens 0", "'0' is not a whole number from 1 on"),
        ("sharpness a.pt bin --tolerance 0", "'0' is not a number above 0"),
    ],
)
def test_bad_lines_are_refused_by_name(
    call: dict[str, Any], capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(line.split())
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert not call


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(SharpnessError("no such thing"), 1, "no such thing"), (KeyboardInterrupt(), 130, "stopped")],
)
def test_failure_is_one_line(
    call: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    call["raises"] = error
    assert main(["sharpness", "a.pt", "bin"]) == status
    assert capsys.readouterr().err == f"sigma-fairseq sharpness: {said}\n"
