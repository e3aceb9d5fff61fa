"""The script that times the monitors, on a model small enough for a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "monitor_cost.py"


def test_it_prints_three_times_and_what_follows_for_an_interval() -> None:
    sizes = ["--width", "16", "--heads", "2", "--vocabulary", "50", "--tokens", "64"]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, "--length", "8", "--steps", "2"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = re.findall(r"^(.{12}) +([\d.]+) ms \(([\d.]+) to ([\d.]+)\)$", result.stdout, re.M)
    assert [kind.strip() for kind, *_ in found] == ["without", "sampled", "not sampled"]
    times = {kind.strip(): float(median) for kind, median, *_ in found}
    ratio = re.search(r"^interval 1: ([+-][\d.]+)% a step", result.stdout, re.M)
    assert ratio is not None
    expected = 100 * (times["sampled"] / times["without"] - 1)
    assert abs(float(ratio[1]) - expected) < 2  # the times are rounded
