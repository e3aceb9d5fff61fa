"""Runs the recipes' scripts as a user runs them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


def copy_project(folder: Path) -> Path:
    """A project of its own for the recipes, in which they have data and trainings by default."""
    shutil.copytree(RECIPES, folder / "recipes")
    for name in ("scripts", "sigma_fairseq"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_script(
    script: Path, *arguments: object, cwd: Path, **env: object
) -> subprocess.CompletedProcess:
    """Runs a script from `cwd`, with the Python that runs the tests on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        | {name: str(value) for name, value in env.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )


def smoke(project: Path, script: str, *arguments: object, **env: object) -> str:
    """Runs `RECIPE/SCRIPT` of a project with SMOKE=1 and returns what it prints."""
    env = {"SMOKE": 1, **env}
    result = run_script(project / "recipes" / script, *arguments, cwd=project, **env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def train_log(save: Path) -> tuple[str, list[dict[str, str]]]:
    """The last command line of a train.log, and what it has of every validation."""
    log = (save / "train.log").read_text()
    line = re.findall(r"^\w+: (fairseq-train .*)$", log, re.M)[-1]
    valid = re.findall(r"\| (?:valid|dev-clean) \| (\{.*\})$", log, re.M)
    return line, [json.loads(entry) for entry in valid]


def options_of(line: str) -> dict[str, list[str]]:
    """Options of a command line, the last of each."""
    words = shlex.split(line)
    starts = [number for number, word in enumerate(words) if word.startswith("--")]
    ends = [*starts[1:], len(words)]
    return {words[a]: words[a + 1 : b] for a, b in zip(starts, ends, strict=True)}
