"""The command line: what it prints where, and what it hands on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sigma_fairseq
from sigma_fairseq.cli import main
from sigma_fairseq.demo import run
from sigma_fairseq.demo.processes import DemoError
from sigma_fairseq.demo.settings import Settings


class Call:
    """Stands in for `run_demo` and keeps what it was called with."""

    def __init__(self, raises: BaseException | None = None) -> None:
        self.raises = raises

    def __call__(self, out: Path, settings: Settings, at_once: int, stream: object) -> str:
        self.out, self.settings, self.at_once = out, settings, at_once
        if self.raises is not None:
            raise self.raises
        return "the table"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    call = Call()
    monkeypatch.setattr(run, "run_demo", call)
    return call


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


def test_demo_prints_the_table_and_runs_the_defaults(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "the table\n"
    assert call.settings == Settings()
    assert call.out == Path("runs/demo")
    assert call.at_once >= 1


def test_demo_hands_its_options_on(call: Call) -> None:
    line = "demo --out x/y --seed 3 --updates 50 --jobs 7 --learning-rate 0.001 1e-4 1e-3"
    assert main(line.split()) == 0
    assert (call.out, call.at_once) == (Path("x/y"), 7)
    assert (call.settings.seed, call.settings.updates) == (3, 50)
    rates = [(one.model.name, one.learning_rate) for one in call.settings.contenders]
    models = ("σReparam + DeepNorm", "DeepNorm", "post-LN")
    assert rates == [(model, rate) for rate in (0.001, 1e-4) for model in models]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demo --seed -1", "'-1' is not a whole number from 0 on"),
        ("demo --seed 4294967296", "'4294967296' is not a whole number from 0 on"),
        ("demo --updates 0", "'0' is not a whole number from 1 on"),
        ("demo --jobs 1.5", "'1.5' is not a whole number from 1 on"),
        ("demo --learning-rate 0", "'0' is not a number above 0"),
        ("demo --learning-rate 1e-3 hot", "'hot' is not a number above 0"),
        ("demo --learning-rate inf", "'inf' is not a number above 0"),
        ("fly", "invalid choice: 'fly'"),
        ("", "the following arguments are required: VERB"),
    ],
)
def test_bad_lines_are_refused_by_name(
    call: Call, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(line.split())
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert not hasattr(call, "settings")


@pytest.mark.parametrize("line", ["--help", "demo --help", "user-dir --help"])
def test_help_helps(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(line.split())
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: sigma-fairseq" in printed
    options = re.findall(r"^  (--[a-z-]+)(.*(?:\n {8,}.*)*)", printed, re.MULTILINE)
    assert all(len(text.split()) > 3 for _, text in options)


def test_failure_is_one_message_and_status_1(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    call.raises = DemoError("training x failed")
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "sigma-fairseq demo: training x failed\n"


def test_ctrl_c_says_how_to_go_on(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    call.raises = KeyboardInterrupt()
    assert main(["demo"]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_end_of_the_terminal_or_job_is_like_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def run_until_killed(*args: object) -> str:
        os.kill(os.getpid(), number)
        return "not reached"

    before = signal.getsignal(number)
    monkeypatch.setattr(run, "run_demo", run_until_killed)
    assert main(["demo"]) == 130
    assert signal.getsignal(number) == before


def test_nohup_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run_through_it(*args: object) -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        return "the table"

    monkeypatch.setattr(run, "run_demo", run_through_it)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["demo"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().out == "the table\n"
