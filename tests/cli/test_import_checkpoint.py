"""The verb `import`: the real command, the one that it prints, and how it fails."""

import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigma_fairseq.cli import main
from tests.checkpoints.commands import TRANSLATION, train
from tests.conftest import USER_DIR, run_fairseq

ADAM = ("--optimizer", "adam", "--lr", "0.01", "--max-update", "2")


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The command quietens fairseq's log for the rest of its process."""
    logger = logging.getLogger("fairseq")
    before = logger.level
    yield
    logger.setLevel(before)


def test_the_printed_command_fine_tunes(data_bin: Path, tmp_path: Path) -> None:
    shared = ("--arch", "transformer", "--share-decoder-input-output-embed")
    trained = train(data_bin, tmp_path / "stock", *TRANSLATION, *ADAM, *shared)
    out = tmp_path / "imported.pt"
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "sigma_fairseq.cli", "import", trained, out),
            *("--arch", "transformer_reparam_postln_6l", "--reparam-qkv", "qkv"),
            *("--encoder-layers", "2", "--decoder-layers", "1"),
        ],
        capture_output=True,
        text=True,
        cwd=Path(USER_DIR).parent,
    )
    assert ran.returncode == 0, ran.stderr
    said, command = ran.stdout.splitlines()
    assert said == f"{out}: σReparam with γ = σ(W), computes what {trained} does"
    name, data, *options, end = shlex.split(command)
    assert (name, data, end) == ("fairseq-train", str(data_bin), "...")
    options[options.index("$(sigma-fairseq user-dir)")] = USER_DIR
    others = ("--cpu", "--num-workers", "0", "--batch-size", "32", "--save-dir", str(tmp_path))
    tuned = run_fairseq("train", data, *options, *ADAM, *others)
    assert f"loading pretrained model from {out}" in tuned.stdout + tuned.stderr
    assert (tmp_path / "checkpoint_last.pt").is_file()


def test_failure_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.pt"
    arguments = [str(missing), str(tmp_path / "out.pt"), "--arch", "transformer_preln_6l"]
    assert main(["import", *arguments]) == 1
    assert capsys.readouterr() == ("", f"sigma-fairseq import: {missing} is not a file\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.pt b.pt", "the following arguments are required: --arch"),
        ("a.pt b.pt --arch c --encoder-layers 0", "'0' is not a whole number from 1 on"),
        ("a.pt b.pt --arch c --reparam-qkv kv", "invalid choice: 'kv'"),
    ],
)
def test_bad_lines_are_refused_by_name(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["import", *line.split()])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
