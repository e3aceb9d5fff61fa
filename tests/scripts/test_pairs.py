"""Pairs converted on several cores: nothing lost, nothing out of order, nothing half done."""

import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import pairs  # noqa: E402
from parallel_text import TextError  # noqa: E402

LINES = 2 * pairs.CHUNK + 7


def upper(source: str, target: str) -> tuple[str, str] | str:
    """Goes to other processes, so it is not in a test."""
    if target == "fail":
        raise ArithmeticError
    return "even" if int(source) % 2 == 0 else (f"{source}!", target.upper())


def write(folder: Path, name: str, source: list[bytes], target: list[bytes]) -> tuple[Path, Path]:
    files = (folder / f"{name}.en", folder / f"{name}.de")
    for file, lines in zip(files, (source, target), strict=True):
        file.write_bytes(b"".join(lines))
    return files


def test_two_corpora_become_one_in_order(tmp_path: Path) -> None:
    numbers = [b"%d\n" % number for number in range(LINES)]
    corpora = {
        "long": write(tmp_path, "long", numbers, ["ä\r\n".encode()] * LINES),
        # The last line has no end, and one is not UTF-8.
        "short": write(tmp_path, "short", [b"1\n", b"2\n", b"3"], [b"\xe4\n", b"x\n", b"y"]),
    }
    outputs = (tmp_path / "out.en", tmp_path / "out.de")
    counts = pairs.convert_files(upper, corpora, outputs, workers=2)
    odd = [f"{number}!\n" for number in range(1, LINES, 2)]
    assert outputs[0].read_text() == "".join(odd) + "3!\n"
    assert outputs[1].read_text() == "Ä\n" * len(odd) + "Y\n"
    assert counts == {
        "long": {"kept": len(odd), "even": LINES - len(odd)},
        "short": {"kept": 1, "even": 1, "not UTF-8": 1},
    }
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("longer", [1, pairs.CHUNK + 1])
@pytest.mark.parametrize("side", [0, 1])
def test_files_of_different_lengths(side: int, longer: int, tmp_path: Path) -> None:
    lines = [[b"1\n"] * (pairs.CHUNK - 1)] * 2
    lines[side] = lines[side] + [b"1\n"] * longer
    files = write(tmp_path, "a", *lines)
    outputs = (tmp_path / "out.en", tmp_path / "out.de")
    with pytest.raises(TextError) as caught:
        pairs.convert_files(upper, {"a": files}, outputs, workers=1)
    short = files[1 - side]
    assert str(caught.value) == f"{short} ends after 999 lines, {files[side].name} does not"
    assert not any(output.exists() for output in outputs)


def test_a_failing_conversion_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    files = write(tmp_path, "a", [b"1\n"], [b"fail\n"])
    outputs = (tmp_path / "out.en", tmp_path / "out.de")
    with pytest.raises(ArithmeticError):
        pairs.convert_files(upper, {"a": files}, outputs, workers=1)
    assert not any(output.exists() for output in outputs)


def test_a_missing_file(tmp_path: Path) -> None:
    files = write(tmp_path, "a", [b"1\n"], [b"x\n"])
    files[1].unlink()
    with pytest.raises(TextError, match=r"a\.de: no such file"):
        pairs.convert_files(upper, {"a": files}, (tmp_path / "b", tmp_path / "c"), workers=1)


def test_counts_are_kept(tmp_path: Path) -> None:
    counts = {"a": Counter({"kept": 1200, "empty": 34})}
    pairs.write_counts(tmp_path / "a.json", counts)
    assert pairs.read_counts(tmp_path / "a.json") == counts
    assert pairs.summary("a", counts["a"]) == "a: 1,200 of 1,234 pairs kept; left out: 34 empty"
    assert pairs.summary("b", Counter({"kept": 2})) == "b: 2 of 2 pairs kept"


@pytest.mark.parametrize(("terminal", "end"), [(True, "\r"), (False, "\n")])
def test_progress(
    terminal: bool, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter((0.0, 0.1, 40.0, 40.1))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(pairs.time, "monotonic", lambda: next(times))
    progress = pairs.Progress("europarl")
    for _ in range(3):
        progress.show(80_000)
    lines = capsys.readouterr().err
    assert lines.rstrip(f" {end}") == "europarl: 80,000 pairs, 2,000 a second"
    assert lines.endswith(end)
