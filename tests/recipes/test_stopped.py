"""What train.sh says of a training that failed or was killed, with a fairseq-train that does."""

import os
from pathlib import Path

import pytest

from tests.recipes.scripts import copy_project, run_script

ARCH = "transformer_reparam_deepnorm_6l"


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [
        ("exit 1", 1, "stopped with status 1"),
        ("exit 3", 3, "stopped with status 3 by --on-collapse"),
        ("kill -9 $$", 137, "stopped with status 137"),
    ],
)
def test_a_training_that_stops(command: str, status: int, why: str, tmp_path: Path) -> None:
    project, save = copy_project(tmp_path / "project"), tmp_path / "run"
    (tmp_path / "prepared.txt").touch()
    script, arguments = project / "recipes" / "multi30k_en_de" / "train.sh", [ARCH, 1]
    commands = tmp_path / "commands"
    commands.mkdir()
    env = {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        **{"DATA_DIR": tmp_path, "SAVE_DIR": save},
    }

    def train(ends: str, said: str) -> tuple[int, str]:
        (commands / "fairseq-train").write_text(f"#!/bin/sh\necho a figure\n{ends}\n")
        (commands / "fairseq-train").chmod(0o755)
        result = run_script(script, *arguments, cwd=tmp_path, **env)
        assert f"{said} {ARCH}, seed 1, in {save}\n" in result.stdout
        assert "a figure" in result.stdout
        # Before the last line bash has its own of what was killed.
        return result.returncode, result.stderr.rpartition("multi30k_en_de: ")[2]

    begins = "no checkpoint yet: the same command begins anew"
    assert train(command, "training") == (status, f"{why}; {begins}\n")
    goes_on = f"{save}/checkpoint_last.pt is there: the same command goes on from it"
    (save / "checkpoint_last.pt").touch()
    assert train(command, "resuming") == (status, f"{why}; {goes_on}\n")
    assert not (save / "finished.txt").exists()
    assert "a figure" in (save / "train.log").read_text()
    assert train("exit 0", "resuming") == (0, "")
    (commands / "fairseq-train").unlink()
    again = run_script(script, *arguments, cwd=tmp_path, **env)
    assert again.stdout == f"multi30k_en_de: {save}: this run has ended; see train.log there\n"
