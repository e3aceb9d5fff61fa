"""`sigma-fairseq sweep`: what it prints where, and what it hands on."""

from pathlib import Path

import pytest

from sigma_fairseq.cli import main
from sigma_fairseq.sweep import run
from sigma_fairseq.sweep.run import Finished
from sigma_fairseq.sweep.settings import Sweep


class Call:
    """Stands in for `run_sweep` and keeps what it was called with."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None
        self.failures: list[str] = []

    def __call__(self, sweep: Sweep, stream: object) -> Finished:
        self.sweep = sweep
        if self.raises is not None:
            raise self.raises
        return Finished("the tables", self.failures)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    call = Call()
    monkeypatch.setattr(run, "run_sweep", call)
    return call


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "bin").mkdir()
    file = tmp_path / "sweep.yaml"
    file.write_text("data: bin\nmethods: {a: {arch: x}}\njobs: 2\n")
    return str(file)


def test_tables_are_printed(call: Call, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", file]) == 0
    assert capsys.readouterr().out == "the tables\n"
    assert call.sweep.jobs == 2
    assert main(["sweep", file, "--jobs", "5"]) == 0
    assert call.sweep.jobs == 5


def test_trainings_that_failed_are_named_after_the_tables(
    call: Call, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call.failures = ["a: gone", "b: gone too"]
    assert main(["sweep", file]) == 1
    printed = capsys.readouterr()
    assert printed.out == "the tables\n"
    assert printed.err == "sigma-fairseq sweep: a: gone\nsigma-fairseq sweep: b: gone too\n"


def test_bad_file_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("dta: bin\n")
    assert main(["sweep", str(file)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"sigma-fairseq sweep: {file}: the sweep has no key dta; did you m")
    assert printed.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(
    call: Call, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call.raises = KeyboardInterrupt()
    assert main(["sweep", file]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
