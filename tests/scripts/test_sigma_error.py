"""The error of σ over a real training, against an SVD of this test's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import USER_DIR

SCRIPT = Path(__file__).parents[2] / "scripts" / "sigma_error.py"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def training(data_bin: Path, arch: str) -> list[str]:
    return f"""fairseq-train {data_bin} --user-dir {USER_DIR} --task translation --arch {arch}
        --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32
        --encoder-attention-heads 4 --decoder-attention-heads 4 --cpu --max-tokens 200
        --optimizer adam --lr 0.01 --max-update 7 --no-save --disable-validation --num-workers 0
        --log-format none""".split()


def test_of_a_training(data_bin: Path, tmp_path: Path) -> None:
    out = tmp_path / "errors.jsonl"
    command = training(data_bin, "transformer_reparam_postln_6l")
    result = run("--every", "3", "--out", str(out), *command)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 3, 6]
    values = np.array([line["errors"] for line in lines])
    assert values.shape == (3, 16)
    assert (values < 1e-5).all()  # never above the truth
    summary = result.stdout.splitlines()[-1]
    assert summary.startswith("16 weights, 3 updates: median ")
    shown = dict(part.rsplit(" ", 1) for part in summary.partition(": ")[2].split(", "))
    assert float(shown["99 %"]) == pytest.approx(np.percentile(abs(values), 99), rel=0.01)
    assert float(shown["largest"]) == pytest.approx(abs(values).max(), rel=0.01)
    assert float(shown["99 %"]) < 0.01


def test_a_model_without_sigma(data_bin: Path) -> None:
    result = run(*training(data_bin, "transformer_postln_6l"))
    assert result.returncode == 1
    assert result.stderr.endswith(
        "the model has no weight under sigmaReparam, or no update was trained\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "0", "fairseq-train"], "--every 0 is less than 1"),
        (["fairseq-eval-lm"], "has to be a command of fairseq-train"),
        ([], "has to be a command of fairseq-train"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
