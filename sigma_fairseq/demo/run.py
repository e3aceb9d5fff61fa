"""A demo from an empty folder to its table and its report page."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TextIO

from sigma_fairseq.sweep.processes import Job, SweepError, run_jobs
from sigma_fairseq.sweep.progress import Progress
from sigma_fairseq.sweep.run import locked, run_sweep
from sigma_fairseq.sweep.settings import Sweep, make_sweep


class Demo(Protocol):
    """Data, and a sweep over them.

    Attributes:
        name: of its folder.
        needed: modules that must be installed.
        preparing: what making the data is, in words.
    """

    name: str
    needed: tuple[str, ...]
    preparing: str

    def has_data(self, folder: Path) -> bool:
        """Whether the folder has the data of these settings."""

    def make_data(self, folder: Path) -> Job:
        """Writes them."""

    def sweep(self, data: Path) -> dict[str, Any]:
        """The sweep, as a file beside the data has it, but for `out` and `jobs`."""

    def heading(self, data: Path) -> str:
        """What was trained, and on what: to stand above the table."""

    def after(self, data: Path, sweep: Sweep) -> Job:
        """What to run when the sweep has ended, if it has not been run; nothing by default."""
        yield from ()

    def footing(self, data: Path, sweep: Sweep) -> str:
        """What came of that: to stand below the table."""
        return ""


def run_demo(out: Path, demo: Demo, jobs: int, stream: TextIO) -> str:
    """Trains and evaluates every method of a demo; what is finished already is not redone.

    Args:
        out: folder of everything that demos write; this one has a folder there with `data`, `runs`,
            a sweep's folder, and `report`.
        demo: what to train, and on what.
        jobs: trainings at the same time.
        stream: where progress is shown.

    Returns:
        The sweep's table, with what was trained above it, what was run afterwards and the report's
        page below.

    Raises:
        SweepError: something failed; its text says what, and where to read on.
    """
    missing = [name for name in demo.needed if find_spec(name) is None]
    if missing:
        raise SweepError(f"the demo needs {' and '.join(missing)}, which is not installed")
    if os.pathsep in str(out):
        raise SweepError(f"fairseq takes {os.pathsep} in {out} for the end of a path: use another")
    folder = out / demo.name
    data = folder / "data"
    with locked(folder) as lock:
        if not demo.has_data(data):
            Progress(stream).say(demo.preparing)
            run_jobs([demo.make_data(data)], [{}], lambda: None, (lock,))
        content = {**demo.sweep(data), "out": "runs", "jobs": jobs}
        sweep = make_sweep(content, folder, demo.name)
        tables, failures = run_sweep(sweep, stream)
        if failures:
            raise SweepError("\n".join(failures))
        run_jobs([demo.after(data, sweep)], [{}], lambda: None, (lock,))
        page = _report(sweep, folder / "report")
    parts = [demo.heading(data), tables, demo.footing(data, sweep), f"Report: {page}"]
    return "\n\n".join(filter(None, parts))


def _report(sweep: Sweep, out: Path) -> Path:
    # matplotlib takes its time: not before the trainings have ended.
    from sigma_fairseq.report.page import write_report

    return write_report([sweep.out / point.name for point in sweep.points], out).page
