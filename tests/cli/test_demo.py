"""`sigma-fairseq demo`: what it prints where, and what it hands on."""

from pathlib import Path

import pytest

from sigma_fairseq.cli import main
from sigma_fairseq.demo import run
from sigma_fairseq.demo.language_model import LanguageModelDemo
from sigma_fairseq.demo.run import Demo
from sigma_fairseq.demo.settings import LanguageModelSettings, SpeechSettings, TranslationSettings
from sigma_fairseq.demo.speech import SpeechDemo
from sigma_fairseq.demo.translation import TranslationDemo
from sigma_fairseq.sweep.processes import SweepError


class Call:
    """Stands in for `run_demo` and keeps what it was called with."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None

    def __call__(self, out: Path, demo: Demo, jobs: int, stream: object) -> str:
        assert isinstance(demo, TranslationDemo | SpeechDemo | LanguageModelDemo)
        self.out, self.settings, self.jobs = out, demo.settings, jobs
        if self.raises is not None:
            raise self.raises
        return "the table"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    call = Call()
    monkeypatch.setattr(run, "run_demo", call)
    return call


def test_table_is_printed_and_the_defaults_are_run(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "the table\n"
    assert call.settings == TranslationSettings()
    assert call.out == Path("runs/demo")
    assert call.jobs >= 1


def test_options_are_handed_on(call: Call) -> None:
    assert main(["demo", "--out", "x/y", "--seed", "3", "--updates", "50", "--jobs", "7"]) == 0
    assert (call.out, call.jobs) == (Path("x/y"), 7)
    assert call.settings == TranslationSettings(seed=3, updates=50)


def test_speech_is_a_demo_with_defaults_of_its_own(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--speech"]) == 0
    assert call.settings == SpeechSettings()
    assert main(["demo", "--speech", "--seed", "3", "--updates", "50"]) == 0
    assert call.settings == SpeechSettings(seed=3, updates=50)
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "The speech is synthetic" in " ".join(capsys.readouterr().out.split())


def test_language_models_are_a_demo_with_defaults_of_its_own(call: Call) -> None:
    assert main(["demo", "--lm"]) == 0
    assert call.settings == LanguageModelSettings()
    assert main(["demo", "--lm", "--seed", "3", "--updates", "50"]) == 0
    assert call.settings == LanguageModelSettings(seed=3, updates=50)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demo --lm --speech", "argument --speech: not allowed with argument --lm"),
        ("demo --seed -1", "'-1' is not a whole number from 0 on"),
        ("demo --seed 4294967296", "'4294967296' is not a whole number from 0 on"),
        ("demo --updates 0", "'0' is not a whole number from 1 on"),
        ("demo --jobs 1.5", "'1.5' is not a whole number from 1 on"),
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


def test_failure_is_one_message_and_status_1(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    call.raises = SweepError("training x failed")
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "sigma-fairseq demo: training x failed\n"


def test_ctrl_c_says_how_to_go_on(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    call.raises = KeyboardInterrupt()
    assert main(["demo"]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
