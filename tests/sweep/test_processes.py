"""Jobs of commands: order, how many at once, failures, and that nothing is left running."""

import os
import sys
import time
from pathlib import Path

import pytest

from sigma_fairseq.sweep.processes import Command, CommandFailedError, Job, SweepError, run_jobs


def python(code: str, log: Path, append: bool = False) -> Command:
    return Command("the test's command", [sys.executable, "-S", "-c", code], log, append)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_job_goes_on_after_each_command(tmp_path: Path) -> None:
    log = tmp_path / "new folder" / "log"
    seen: list[str] = []

    def job() -> Job:
        yield python("import os; print('first', os.environ['PLACE'])", log)
        seen.append(log.read_text())
        yield python("import sys; sys.stderr.write('second\\n')", log, append=True)
        seen.append(log.read_text())
        yield python("print('third')", log)
        seen.append(log.read_text())

    run_jobs([job()], [{"PLACE": "1"}], lambda: None)
    assert seen == ["first 1\n", "first 1\nsecond\n", "third\n"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_jobs_start_in_order_and_no_more_at_once_than_allowed(tmp_path: Path, at_once: int) -> None:
    begun: list[int] = []
    ended: list[int] = []
    most = 0

    def job(number: int) -> Job:
        begun.append(number)
        yield python("import time; time.sleep(0.3)", tmp_path / str(number))
        ended.append(number)

    def watch() -> None:
        nonlocal most
        most = max(most, len(begun) - len(ended))

    run_jobs([job(number) for number in range(4)], [{}] * at_once, watch)
    assert begun == [0, 1, 2, 3]
    assert sorted(ended) == [0, 1, 2, 3]
    assert most == at_once


def test_each_running_job_has_a_place_to_itself(tmp_path: Path) -> None:
    logs = [tmp_path / str(number) for number in range(4)]

    def job(log: Path) -> Job:
        code = "import os, time; print(os.environ['PLACE'], time.time()); time.sleep(0.3)"
        yield python(f"{code}; print(time.time())", log)

    run_jobs(map(job, logs), [{"PLACE": "a"}, {"PLACE": "b"}], lambda: None)
    spans: dict[str, list[tuple[float, float]]] = {}
    for log in logs:
        place, begin, end = log.read_text().split()
        spans.setdefault(place, []).append((float(begin), float(end)))
    assert sorted(spans) == ["a", "b"]
    for first, second in map(sorted, spans.values()):
        assert first[1] < second[0]


def test_job_with_nothing_to_do_takes_no_place(tmp_path: Path) -> None:
    done: list[str] = []

    def idle() -> Job:
        done.append("idle")
        yield from ()

    def busy() -> Job:
        yield python("", tmp_path / "log")
        done.append("busy")

    run_jobs([idle(), idle(), busy()], [{}], lambda: None)
    assert done == ["idle", "idle", "busy"]


def test_failure_names_purpose_status_and_the_end_of_the_log_and_stops_the_others(
    tmp_path: Path,
) -> None:
    def long() -> Job:
        yield python(
            "import os, time; print(os.getpid(), flush=True); time.sleep(60)", tmp_path / "long"
        )

    def failing() -> Job:
        yield python("import time; time.sleep(0.5)", tmp_path / "failing")
        yield python(
            "for n in range(99): print('line', n)\nraise SystemExit('so it goes')",
            tmp_path / "failing",
        )

    begin = time.monotonic()
    with pytest.raises(CommandFailedError) as raised:
        run_jobs([long(), failing()], [{}, {}], lambda: None)
    assert time.monotonic() - begin < 10
    lines = str(raised.value).splitlines()
    assert lines[0] == (
        f"the test's command failed (exit status 1). Its log {tmp_path / 'failing'} ends:"
    )
    assert lines[-2:] == ["    line 98", "    so it goes"]
    assert len(lines) < 20
    assert not is_alive(int((tmp_path / "long").read_text()))


def test_signal_that_killed_a_command_is_named(tmp_path: Path) -> None:
    def job() -> Job:
        yield python("import os; os.kill(os.getpid(), 9)", tmp_path / "log")

    with pytest.raises(CommandFailedError, match="killed by signal 9") as raised:
        run_jobs([job()], [{}], lambda: None)
    assert raised.value.status == -9


def test_job_may_handle_the_failure_of_its_command(tmp_path: Path) -> None:
    seen: list[str] = []

    def job() -> Job:
        try:
            yield python("raise SystemExit(3)", tmp_path / "log")
        except CommandFailedError as error:
            seen.append(str(error))
        yield python("", tmp_path / "log")
        seen.append("went on")

    run_jobs([job()], [{}], lambda: None)
    assert "exit status 3" in seen[0]
    assert seen[1:] == ["went on"]


def test_interrupt_leaves_no_process(tmp_path: Path) -> None:
    logs = [tmp_path / name for name in "ab"]

    def job(log: Path) -> Job:
        # A process that does not care for SIGTERM has to go too.
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if log.name == "b" else "0"
        code = f"import os, signal, time; {ignore}; print(os.getpid(), flush=True); time.sleep(60)"
        yield python(code, log)

    def interrupt_when_both_run() -> None:
        if all(log.is_file() and log.read_text() for log in logs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(log) for log in logs], [{}, {}], interrupt_when_both_run)
    assert not any(is_alive(int(log.read_text())) for log in logs)


def test_program_that_is_not_there_is_an_error_of_the_sweep(tmp_path: Path) -> None:
    def job() -> Job:
        yield Command("the test's command", [str(tmp_path / "nowhere")], tmp_path / "log")

    with pytest.raises(SweepError, match=r"the test's command cannot be started: .*nowhere"):
        run_jobs([job()], [{}], lambda: None)


def test_descriptor_is_passed_on(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        number = file.fileno()

        def job() -> Job:
            yield python(f"import os; os.write({number}, b'from the child')", tmp_path / "log")

        run_jobs([job()], [{}], lambda: None, (number,))
    assert (tmp_path / "file").read_text() == "from the child"
