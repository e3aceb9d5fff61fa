"""Progress on a terminal, where a line can be rewritten, and in a log, where it cannot."""

import io
import re

import pytest

from sigma_fairseq.sweep.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_old(progress: Progress) -> None:
    """As if the last status were of long ago."""
    progress._last -= 3600


def test_log_is_not_flooded() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for update in range(1000):
        progress.status(f"update {update}")
    assert stream.getvalue() == ""
    make_old(progress)
    for update in range(1000):
        progress.status(f"update {update}")
    assert re.fullmatch(r" +0 s  update 0\n", stream.getvalue())


def test_log_has_whole_lines_and_no_control_characters() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.say("begun")
    make_old(progress)
    progress.status("half")
    progress.say("done")
    progress.end_line()
    assert re.fullmatch(r" +0 s  begun\n +0 s  half\n +0 s  done\n", stream.getvalue())


def test_terminal_rewrites_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    progress = Progress(stream)
    make_old(progress)
    progress.status("x" * 200)
    assert "\n" not in stream.getvalue()
    shown = stream.getvalue().rpartition("\x1b[K")[2]
    assert len(shown) == 29
    progress.say("stays")
    assert stream.getvalue().endswith("stays\n")


def test_status_that_says_nothing_is_not_shown() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    make_old(progress)
    progress.status("")
    assert stream.getvalue() == ""
