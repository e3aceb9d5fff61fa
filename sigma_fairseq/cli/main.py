"""Reads the command line of `sigma-fairseq` and calls the package that does the work."""

import argparse
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import sigma_fairseq
from sigma_fairseq.demo.settings import Settings, every_model_at


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
    _add_demo(verbs)
    return parser


def _user_dir(options: argparse.Namespace) -> int:
    print(Path(sigma_fairseq.__file__).resolve().parent)
    return 0


def _add_demo(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = verbs.add_parser(
        "demo",
        help="train deep translation models on the CPU, in minutes and without a download",
        description="Trains 18-layer encoder-decoder transformers to translate English number "
        "words into German ones, with fairseq's own commands on the CPU, and prints a table of "
        "how hot a learning rate post-LN, DeepNorm and σReparam + DeepNorm bear. "
        "Interrupted or run again, it goes on where it was: only what is missing is run.",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="folder for data, checkpoints, logs and table (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=_whole_number(0),
        default=Settings.seed,
        metavar="N",
        help="of the numbers, the initial weights and the batches",
    )
    demo.add_argument(
        "--learning-rate",
        type=_rate,
        nargs="+",
        metavar="RATE",
        help="train all three models at each of these (default: all three at one that is hot, and "
        "DeepNorm at one that it bears)",
    )
    demo.add_argument(
        "--updates",
        type=_whole_number(1),
        default=Settings.updates,
        metavar="N",
        help="length of each training (default: %(default)s)",
    )
    demo.add_argument(
        "--jobs",
        type=_whole_number(1),
        default=_cores(),
        metavar="N",
        help="trainings at the same time, a core each (default: the cores there are, %(default)s)",
    )
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    # Not before it is asked for: other verbs need none of it.
    from sigma_fairseq.demo.processes import DemoError
    from sigma_fairseq.demo.run import run_demo

    settings = Settings(seed=options.seed, updates=options.updates)
    if options.learning_rate:
        contenders = every_model_at(options.learning_rate)
        settings = dataclasses.replace(settings, contenders=contenders)
    try:
        with _stopped_like_ctrl_c():
            print(run_demo(options.out, settings, options.jobs, sys.stderr))
    except DemoError as error:
        print(f"sigma-fairseq demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsigma-fairseq demo: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """Lets the end of a terminal or job reach the trainings too, which would else run on.

    A signal that is ignored, as under nohup, stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isdecimal() and least <= int(text) < 2**32:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")

    return parse


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if 0 < rate < math.inf:
        return rate
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
