"""The tables, on made-up results: every figure against one worked out by hand."""

import math
from pathlib import Path
from statistics import stdev

import pytest

from sigma_fairseq.sweep.settings import Evaluation, Point, Sweep
from sigma_fairseq.sweep.table import (
    Row,
    is_learning_rate_sweep,
    make_rows,
    score_table,
    sensitivity_table,
)
from sigma_fairseq.sweep.training import Result
from sigma_fairseq.verdict import Verdict

FALLING = [8.0, 5.0, 4.0, 3.0, 2.5, 2.2, 2.1, 2.0]
STUCK = [8.0, 6.0, 6.1, 6.0, 6.1, 6.0, 6.1, 6.0]
GROWN = [8.0, 4.0, 3.0, 3.0, 3.0, 7.0, 7.0, 7.0]


def result(losses: list[float], bleu: float = 0.0, outcome: str = "finished") -> Result:
    """Losses of eight stretches of ten updates: the last of them is the final loss."""
    scores = {"valid": bleu, "test": bleu - 1} if outcome == "finished" else {}
    return Result(outcome, [(10 * n, loss) for n, loss in enumerate(losses, 1)], scores)


def point(method: str, seed: int = 1, depth: int | None = None, rate: float | None = None) -> Point:
    grid = {} if rate is None else {"lr": rate}
    return Point(method, depth, grid, seed, {"arch": "x", **grid})


def sweep(score: str = "bleu", select: str | None = None) -> Sweep:
    return Sweep(Path("data"), Path("out"), (), Evaluation(score, "13a", {}), select)


def cells(table: str) -> list[list[str]]:
    """The lines of a Markdown table without the rule under its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    del lines[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("came_of_it", "verdict"),
    [
        (result(FALLING), Verdict.HEALTHY),
        (result(STUCK), Verdict.STUCK),
        (result(GROWN), Verdict.DIVERGED),
        (result(FALLING, outcome="not finite"), Verdict.DIVERGED),
        (result([], outcome="not finite"), Verdict.DIVERGED),
        (result(FALLING, outcome="stopped"), Verdict.DIVERGED),
        (result(STUCK, outcome="stopped"), Verdict.STUCK),
    ],
)
def test_verdict_of_a_training(came_of_it: Result, verdict: Verdict) -> None:
    assert Row(point("a"), came_of_it, start_loss=8.0).verdict is verdict


def test_start_is_the_median_over_the_trainings_of_a_depth() -> None:
    results = [
        (point("a", 1, 6), result([7.0, 3.0])),
        (point("a", 2, 6), result([8.0, 3.0])),
        (point("a", 3, 6), result([90.0, 3.0])),
        (point("a", 1, 18), result([9.0, 3.0])),
        (point("a", 2, 18), result([math.nan])),
    ]
    assert [row.start_loss for row in make_rows(results)] == [8.0, 8.0, 8.0, 9.0, 9.0]


def test_table_has_a_line_a_method_and_columns_a_depth() -> None:
    rows = make_rows(
        [
            (point("good", 1, 6), result(FALLING, 30.0)),
            (point("good", 2, 6), result(FALLING, 32.0)),
            (point("bad", 1, 6), result(STUCK, 1.0)),
            (point("bad", 2, 6), result(GROWN, 20.0)),
            (point("good", 1, 18), result(FALLING, 33.0)),
        ]
    )
    text = score_table(rows, sweep())
    head, good, bad = cells(text)
    assert head == [
        *("method", "6L DV", "6L loss", "6L valid BLEU", "6L test BLEU"),
        *("18L DV", "18L loss", "18L valid BLEU", "18L test BLEU"),
    ]
    assert good == [
        *("good", "0/2", "**2.000 ± 0.000**", "**31.0 ± 1.4**", "**30.0 ± 1.4**"),
        *("0/1", "**2.000**", "**33.0**", "**32.0**"),
    ]
    assert bad == ["bad", "1/2, stuck 1/2", "6.000", "1.0", "0.0", "-", "-", "-", "-"]


def test_lower_perplexity_is_better() -> None:
    rows = make_rows([(point("a"), result(FALLING, 9.0)), (point("b"), result(FALLING, 8.0))])
    _, first, second = cells(score_table(rows, sweep("perplexity")))
    assert (first[3], second[3]) == ("9.00", "**8.00**")


def test_lower_word_error_rate_is_better_and_that_of_silence_is_stuck() -> None:
    rows = make_rows(
        [
            (point("good"), result(FALLING, 12.0)),
            (point("bad"), result(FALLING, 100.5)),
            (point("silent"), result(FALLING, 101.0)),
        ],
        "wer",
    )
    # On the second subset "bad" has 99.5, and so some words right.
    verdicts = [Verdict.HEALTHY, Verdict.HEALTHY, Verdict.STUCK]
    assert [row.verdict for row in rows] == verdicts
    text = score_table(rows, sweep("wer"))
    head, *lines = cells(text)
    assert head == ["method", "DV", "loss", "valid WER", "test WER"]
    assert [line[3] for line in lines] == ["**12.0**", "100.5", "101.0"]
    assert lines[2][1] == "0/1, stuck 1/1"
    assert "WER: word error rate in percent" in text


def test_columns_are_of_the_subsets_scored() -> None:
    evaluation = Evaluation("wer", "13a", {}, ["dev-other"])
    scored = Result("finished", result(FALLING).losses, {"dev-other": 7.0})
    rows = make_rows([(point("a"), scored)], "wer")
    head, line = cells(score_table(rows, Sweep(Path(), Path(), (), evaluation)))
    assert (head[3:], line[3:]) == (["dev-other WER"], ["**7.0**"])


def test_selected_value_is_the_best_of_those_where_fewest_seeds_are_lost() -> None:
    rows = make_rows(
        [
            (point("a", 1, rate=1e-4), result(FALLING, 20.0)),
            (point("a", 2, rate=1e-4), result(FALLING, 22.0)),
            (point("a", 1, rate=1e-3), result(FALLING, 25.0)),
            (point("a", 2, rate=1e-3), result(FALLING, 27.0)),
            (point("a", 1, rate=1e-2), result(FALLING, 40.0)),
            (point("a", 2, rate=1e-2), result(GROWN, 0.0)),
        ]
    )
    head, line = cells(score_table(rows, sweep(select="lr")))
    assert head[:3] == ["method", "lr", "DV"]
    assert line[:3] == ["a", "0.001", "0/2"]
    assert line[4] == "**26.0 ± 1.4**"
    _, *lines = cells(score_table(rows, sweep()))
    assert [line[0] for line in lines] == ["a, lr 0.0001", "a, lr 0.001", "a, lr 0.01"]


def test_sensitivity_is_the_mean_excess_over_the_grid() -> None:
    finals = {(1, 1e-4): 3.0, (1, 1e-3): 2.0, (1, 1e-2): 20.0, (2, 1e-4): 2.5, (2, 1e-3): 2.0}
    results = [
        (point("a", seed, rate=rate), result([*FALLING[:7], final]))
        for (seed, rate), final in finals.items()
    ]
    results.append((point("a", 2, rate=1e-2), result(FALLING, outcome="not finite")))
    # A final loss above that of the start, 8.0, and one that is not there count as the start's.
    by_seed = [(3.0 + 2.0 + 8.0) / 3 - 2.0, (2.5 + 2.0 + 8.0) / 3 - 2.0]
    rows = make_rows(results)
    assert is_learning_rate_sweep(rows)
    _, line = cells(sensitivity_table(rows))
    mean = sum(by_seed) / 2
    assert line == [
        *("a", f"{mean:.3f} ± {stdev(by_seed):.3f}", "2.000 ± 0.000", "0.0001, 0.001, 0.01")
    ]


def test_one_method_at_one_rate_makes_no_learning_rate_sweep() -> None:
    rows = make_rows(
        [
            (point("a", rate=1e-4), result(FALLING)),
            (point("a", rate=1e-3), result(FALLING)),
            (point("b", rate=1e-3), result(FALLING)),
        ]
    )
    assert not is_learning_rate_sweep(rows)
    assert is_learning_rate_sweep(rows[:2])
