"""The verb `fuse`: the real command, what it prints, and how it fails."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sigma_fairseq.checkpoints import fuse
from sigma_fairseq.checkpoints.files import CheckpointError
from sigma_fairseq.checkpoints.fuse import Fused
from sigma_fairseq.cli import main
from tests.checkpoints.commands import TRANSLATION, train
from tests.conftest import USER_DIR


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The command quietens fairseq's log for the rest of its process."""
    logger = logging.getLogger("fairseq")
    before = logger.level
    yield
    logger.setLevel(before)


def test_of_a_training(data_bin: Path, tmp_path: Path) -> None:
    arch = ("--arch", "transformer_reparam_postln_6l", "--optimizer", "adam", "--max-update", "1")
    trained = train(data_bin, tmp_path, *TRANSLATION, *arch)
    out = tmp_path / "fused.pt"
    ran = subprocess.run(
        [*(sys.executable, "-W", "ignore", "-m", "sigma_fairseq.cli", "fuse"), trained, out],
        capture_output=True,
        text=True,
        cwd=Path(USER_DIR).parent,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == (
        f"{out}: plain weights of stock fairseq; loads without the plugin\n"
        f"  fairseq-generate {data_bin} --task translation --path {out}\n"
    )
    assert "encoder.layers.0.fc1.weight" in torch.load(out, weights_only=True)["model"]


def test_what_it_prints_where_the_plugin_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[Any] = []

    def fuse_checkpoint(*args: Any) -> Fused:
        called.append(args)
        return Fused("language_modeling", "my data", "--norm noln")

    monkeypatch.setattr(fuse, "fuse_checkpoint", fuse_checkpoint)
    assert main(["fuse", "a.pt", "b.pt", "--data", "my data"]) == 0
    assert called == [("a.pt", "b.pt", "my data")]
    assert capsys.readouterr().out.splitlines() == [
        "b.pt: plain weights; needs --user-dir: stock fairseq has no --norm noln",
        "  fairseq-eval-lm 'my data' --user-dir \"$(sigma-fairseq user-dir)\" "
        "--task language_modeling --path b.pt",
    ]


def test_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> Fused:
        raise CheckpointError("no such thing")

    monkeypatch.setattr(fuse, "fuse_checkpoint", fail)
    assert main(["fuse", "a.pt", "b.pt"]) == 1
    assert capsys.readouterr() == ("", "sigma-fairseq fuse: no such thing\n")


def test_both_files_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["fuse", "a.pt"])
    assert raised.value.code == 2
    assert "the following arguments are required: OUT" in capsys.readouterr().err
