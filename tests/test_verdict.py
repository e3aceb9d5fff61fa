"""Verdicts on recorded losses, and on what must not change them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigma_fairseq.verdict import Verdict, judge

RECORDED: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((Path(__file__).parent / "data" / "losses").glob("*.json"))
}


def recorded(name: str) -> list[float]:
    losses: list[float] = RECORDED[name]["losses"]
    return losses


def test_every_verdict_has_been_recorded() -> None:
    assert {run["verdict"] for run in RECORDED.values()} == set(Verdict)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_run(name: str) -> None:
    assert judge(recorded(name)) == RECORDED[name]["verdict"]


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "spike"])
def test_ten_losses_are_enough(name: str) -> None:
    tenths = [float(part.mean()) for part in np.array_split(recorded(name), 10)]
    assert judge(tenths) == RECORDED[name]["verdict"]


@pytest.mark.parametrize("name", RECORDED)
def test_unit_of_the_loss_does_not_matter(name: str) -> None:
    nats = [loss * 0.6931 for loss in recorded(name)]
    assert judge(nats) == RECORDED[name]["verdict"]


@pytest.mark.parametrize("name", [name for name in RECORDED if "grown" not in name])
def test_run_that_does_not_grow_has_not_diverged_at_any_time(name: str) -> None:
    losses = recorded(name)
    assert all(
        judge(losses[:count]) is not Verdict.DIVERGED
        for count in range(1, len(losses))
        if name != "spike" or losses[count - 1] < 3.5
    )


def test_growth_is_seen_when_it_has_lasted() -> None:
    losses = recorded("grown")
    jump = next(place for place, loss in enumerate(losses) if place > 10 and loss > 5)
    assert judge(losses[:jump]) is Verdict.HEALTHY
    assert judge(losses[: jump + 5]) is Verdict.DIVERGED


def test_loss_that_is_not_finite_at_the_end_has_diverged() -> None:
    for end in (np.nan, np.inf):
        assert judge([*recorded("converged"), end]) is Verdict.DIVERGED
        assert judge([end]) is Verdict.DIVERGED


def test_loss_that_was_not_finite_has_recovered() -> None:
    losses = recorded("converged")
    assert judge([*losses[:20], np.nan, *losses[20:]]) is Verdict.RECOVERED


def test_slow_fall_is_not_stuck() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 50)
    assert judge((np.linspace(9, 8, 50) + noise).tolist()) is Verdict.HEALTHY
    assert judge((np.full(50, 9) + noise).tolist()) is Verdict.STUCK


def test_too_few_losses_are_not_stuck() -> None:
    assert judge([6.0] * 7) is Verdict.HEALTHY
    assert judge([6.0] * 8) is Verdict.STUCK


def test_start_tells_a_hot_first_loss_from_learning() -> None:
    losses = [30.0, *recorded("unigrams")[1:]]
    assert judge(losses) is Verdict.HEALTHY
    assert judge(losses, start=6.1) is Verdict.STUCK


def test_growth_above_the_start_has_diverged() -> None:
    assert judge([6.0, 6.5, 7.0, 7.5, 8.0, 8.5]) is Verdict.DIVERGED


def test_no_loss_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="without losses"):
        judge([])


def test_stuck_and_diverged_runs_are_of_no_use() -> None:
    assert [verdict for verdict in Verdict if verdict.fatal] == [Verdict.STUCK, Verdict.DIVERGED]
