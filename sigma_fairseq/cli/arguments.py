"""What several verbs of the command line share."""

import argparse
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def whole_number(least: int) -> Callable[[str], int]:
    """An argument type: whole numbers from `least` on, of 32 bits."""

    def parse(text: str) -> int:
        if text.isdecimal() and least <= int(text) < 2**32:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")

    return parse


def positive_number(text: str) -> float:
    """An argument type: finite numbers above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if 0 < number < math.inf:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
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
