"""Reads the command line of `sigma-fairseq` and calls the package that does the work."""

import argparse
from pathlib import Path

import sigma_fairseq
from sigma_fairseq.cli import demo, fuse, import_checkpoint, report, sharpness, sweep


def main(argv: list[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: the arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 1 when the verb failed, 130 when it was interrupted.
    """
    options = _parser().parse_args(argv)
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sigma-fairseq", description="What σReparam needs and fairseq has no command for."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    user_dir = verbs.add_parser(
        "user-dir",
        help="print the folder to give to fairseq's --user-dir",
        description="Prints the folder of the sigma_fairseq package, as in: "
        'fairseq-train --user-dir "$(sigma-fairseq user-dir)" ...',
    )
    user_dir.set_defaults(run=_user_dir)
    demo.add_verb(verbs)
    report.add_verb(verbs)
    sweep.add_verb(verbs)
    sharpness.add_verb(verbs)
    fuse.add_verb(verbs)
    import_checkpoint.add_verb(verbs)
    return parser


def _user_dir(options: argparse.Namespace) -> int:
    print(Path(sigma_fairseq.__file__).resolve().parent)
    return 0
