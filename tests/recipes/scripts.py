"""Runs the recipes' scripts as a user runs them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path


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


def options_of(line: str) -> dict[str, list[str]]:
    """Options of a command line, the last of each."""
    words = shlex.split(line)
    starts = [number for number, word in enumerate(words) if word.startswith("--")]
    ends = [*starts[1:], len(words)]
    return {words[a]: words[a + 1 : b] for a, b in zip(starts, ends, strict=True)}
