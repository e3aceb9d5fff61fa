"""`sigma-fairseq report`: what it prints, and its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from sigma_fairseq.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training without monitors."""
    folder = tmp_path / "run"
    folder.mkdir()
    points = [
        f'| INFO | train_inner | {{"loss": "{9 / n}", "num_updates": "{n}", "lr": "0.1"}}\n'
        for n in range(1, 9)
    ]
    (folder / "train.log").write_text("".join(points))
    return folder


def test_the_path_of_the_page_is_all_that_is_printed(run: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sigma_fairseq.cli", "report", str(run)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert ran.stdout == "report/report.html\n"
    assert "matplotlib" not in ran.stderr
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "report" / "loss.png").is_file()


def test_a_run_that_cannot_be_read_is_named_beside_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["report", str(run), str(tmp_path / "gone"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}/report.html\n"
    assert printed.err == f"sigma-fairseq report: {tmp_path}/gone is not a folder\n"


def test_without_any_run_to_draw_the_status_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), str(tmp_path / "gone"), "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"sigma-fairseq report: {tmp_path} is not a run: it has neither a monitor.json nor a "
        "train.log",
        f"sigma-fairseq report: {tmp_path}/gone is not a folder",
    ]


def test_out_that_is_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["report", str(run), "--out", str(tmp_path / "taken")]) == 1
    error = capsys.readouterr().err
    assert error == f"sigma-fairseq report: cannot write to {tmp_path}/taken: File exists\n"


def test_without_matplotlib_it_says_what_to_install(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from sigma_fairseq.cli import main\n"
        f"sys.exit(main(['report', {str(run)!r}]))"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "sigma-fairseq report: needs matplotlib: pip install 'sigma-fairseq[report]'"
    )
    assert "Traceback" not in ran.stderr


def test_no_run_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["report"])
    assert raised.value.code == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err
