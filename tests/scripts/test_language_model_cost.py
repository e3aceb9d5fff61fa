"""The script that measures what language models cost a step."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "language_model_cost.py"
SMALL = ("--block", "64", "--vocabulary", "60100", "--layers", "1", "--width", "32")


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_time_and_memory_side_by_side() -> None:
    result = run("--tokens", "1024", "--steps", "2", *SMALL)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    figures = [re.findall(r"[\d.]+", line.split(" ", 1)[1]) for line in lines]
    assert [line.split()[0] for line in lines] == [
        "transformer_lm_postln_wiki103_16l",
        "transformer_lm_reparam_noln_wiki103_16l",
    ]
    for middle, low, high, ratio, *_, memory, growth in (map(float, row) for row in figures):
        assert 0 < low <= middle <= high
        assert 0.1 < ratio < 10
        # At least weights, gradients and momentum of 20,000·32 + 40,000·8 + 100·2 and a little.
        assert memory >= 12 * (20_000 * 32 + 40_000 * 8) / 1e9 - 0.005
        assert 0.5 < growth < 2
    assert float(figures[0][3]) == float(figures[0][-1]) == 1


def test_fewer_tokens_than_a_block() -> None:
    result = run("--tokens", "63", *SMALL)
    assert result.returncode == 2
    assert "--tokens 63 is less than a --block of 64" in result.stderr.splitlines()[-1]
