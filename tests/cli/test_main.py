"""The command line as a whole: its verbs, their help, and `user-dir`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sigma_fairseq
from sigma_fairseq.cli import main


def test_user_dir_is_the_package_and_nothing_else_is_printed() -> None:
    package = Path(sigma_fairseq.__file__).parent
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sigma_fairseq.cli", "user-dir"],
        capture_output=True,
        text=True,
        check=True,
        cwd=package.parent,
    )
    assert ran.stdout == f"{package.resolve()}\n"


def test_user_dir_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["user-dir"]) == 0
    printed = capsys.readouterr()
    assert Path(printed.out.removesuffix("\n")).is_absolute()
    assert (Path(printed.out.removesuffix("\n")) / "cli" / "main.py").is_file()
    assert printed.err == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fly", "invalid choice: 'fly'"),
        ("", "the following arguments are required: VERB"),
        ("sweep", "the following arguments are required: FILE.yaml"),
        ("sweep x.yaml --jobs 0", "'0' is not a whole number from 1 on"),
    ],
)
def test_bad_lines_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(line.split())
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--help", "demo --help", "sweep --help", "user-dir --help"])
def test_help_helps(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(line.split())
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: sigma-fairseq" in printed
    options = re.findall(r"^  (--[a-z-]+)(.*(?:\n {8,}.*)*)", printed, re.MULTILINE)
    assert all(len(text.split()) > 3 for _, text in options)
