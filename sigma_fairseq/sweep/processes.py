"""Jobs of several commands, some of them at a time, each command with a log of its own."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
LOG_LINES_SHOWN = 12


class SweepError(Exception):
    """Something the user has to know of and can act on: its text is all there is to print."""


class Command(NamedTuple):
    """A program to run.

    Attributes:
        purpose: what it is for, in words that fit before "failed".
        arguments: the program and its arguments.
        log: where its standard output and error go.
        append: keep what the log already says.
    """

    purpose: str
    arguments: list[str]
    log: Path
    append: bool = False


class CommandFailedError(SweepError):
    """A command ended with another status than 0: `status`, negative for a signal."""

    def __init__(self, command: Command, status: int) -> None:
        how = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        lines = command.log.read_text(encoding="utf-8", errors="replace").splitlines()
        end = "".join(f"\n    {line}" for line in lines[-LOG_LINES_SHOWN:])
        self.status = status
        super().__init__(f"{command.purpose} failed ({how}). Its log {command.log} ends:{end}")


#: A job yields one command after the other; it goes on when the command has succeeded, and gets a
#: `CommandFailedError` raised at that place when it has not.
Job = Iterator[Command]


def run_jobs(
    jobs: Iterable[Job],
    places: Sequence[Mapping[str, str]],
    on_poll: Callable[[], None],
    inherit: tuple[int, ...] = (),
) -> None:
    """Runs jobs to their end, and leaves no process behind however it ends itself.

    Args:
        jobs: started in this order.
        places: what is set in the environment of the commands at each place; as many jobs as there
            are places run at the same time.
        on_poll: called several times a second.
        inherit: file descriptors to pass on.

    Raises:
        CommandFailedError: of the first job that does not handle its own; the others are stopped.
    """
    waiting = deque(jobs)
    free = deque(places)
    running: dict[subprocess.Popen[bytes], tuple[Job, Command, Mapping[str, str]]] = {}

    def go_on(job: Job, place: Mapping[str, str], failure: CommandFailedError | None) -> None:
        try:
            command = job.throw(failure) if failure else next(job)  # type: ignore[attr-defined]
        except StopIteration:
            free.appendleft(place)
            return
        running[_start(command, place, inherit)] = (job, command, place)

    try:
        while waiting or running:
            while waiting and free:
                go_on(waiting.popleft(), free.popleft(), None)
            for process in [process for process in running if process.poll() is not None]:
                job, command, place = running.pop(process)
                status = process.returncode
                go_on(job, place, CommandFailedError(command, status) if status else None)
            on_poll()
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        _stop(running)


def _start(
    command: Command, place: Mapping[str, str], inherit: tuple[int, ...]
) -> "subprocess.Popen[bytes]":
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab" if command.append else "wb") as log:
        try:
            return subprocess.Popen(
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **place},
                # Ctrl-C in a terminal reaches this process alone, which then stops the others.
                start_new_session=True,
                pass_fds=inherit,
            )
        except OSError as error:
            raise SweepError(f"{command.purpose} cannot be started: {error}") from error


def _stop(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
