"""`sigma-fairseq report`: runs as one HTML page."""

import argparse
import sys
from pathlib import Path


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command's."""
    report = verbs.add_parser(
        "report",
        help="draw runs: loss, attention entropy, spectral norms, gradients",
        description="Writes one HTML page, which needs no network and no other file, and its "
        "figures as PNG files beside it, from what trainings left in their save directories. "
        "Several runs are drawn on the same axes, and the options in which they differ are in a "
        "table. A training that still goes on can be drawn too.",
    )
    report.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="save directory of a training with monitors, or of one whose log is train.log in it "
        "(--log-format json)",
    )
    report.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder for the page and the figures (default: %(default)s)",
    )
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    try:
        from sigma_fairseq.report.page import write_report
    except ModuleNotFoundError as error:
        print(
            f"sigma-fairseq report: needs {error.name}: pip install 'sigma-fairseq[report]'",
            file=sys.stderr,
        )
        return 1
    from sigma_fairseq.report.runs import RunError

    try:
        report = write_report(options.runs, options.out)
    except RunError as error:
        _complain(str(error).splitlines())
        return 1
    except OSError as error:
        _complain([f"cannot write to {options.out}: {error.strerror}"])
        return 1
    _complain(report.unread)
    print(report.page)
    return 0


def _complain(reasons: list[str]) -> None:
    for reason in reasons:
        print(f"sigma-fairseq report: {reason}", file=sys.stderr)
