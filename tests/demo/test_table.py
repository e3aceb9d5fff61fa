"""The table: what counts as trained, and that every word of it follows from the rows."""

from pathlib import Path

import pytest

from sigma_fairseq.demo.settings import Contender, Model, Settings
from sigma_fairseq.demo.table import Row, is_trained, make_table
from sigma_fairseq.demo.training import Result

UNIGRAM_LOSS = 5.0
TRAINED = Result(400, loss=0.02, bleu=98.76, exact_match=0.954, seconds=81.4, bleu_signature="v:2")
STUCK = Result(400, loss=2.8, bleu=20.1, exact_match=0.0, seconds=59.6, bleu_signature="v:2")
DIVERGED = Result(400, diverged_after=37)


def row(model: str, rate: float, result: Result) -> Row:
    return Contender(Model(model, "arch"), rate), result, Path("runs") / f"{model}-{rate:g}"


@pytest.mark.parametrize(
    ("result", "trained"),
    [
        (TRAINED, True),
        (STUCK, False),
        (DIVERGED, False),
        (Result(1, loss=0.499), True),
        (Result(1, loss=0.501), False),
        (Result(1, loss=float("nan")), False),
    ],
)
def test_trained_is_a_loss_below_a_tenth_of_what_frequencies_cost(
    result: Result, trained: bool
) -> None:
    assert is_trained(result, UNIGRAM_LOSS) is trained


def test_columns_line_up_and_hold_the_figures() -> None:
    rows = [row("A", 3e-3, TRAINED), row("model B", 3e-4, STUCK), row("A", 10, DIVERGED)]
    lines = make_table(Settings(), UNIGRAM_LOSS, rows).splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("model "))
    words = [line.split() for line in lines[head + 2 : head + 5]]
    assert words[0] == ["A", "0.003", "yes", "0.020", "98.8", "95.4%", "81", "runs/A-0.003"]
    assert words[1][:4] == ["model", "B", "0.0003", "no"]
    assert words[2] == ["A", "10", "diverged", "after", "37+", "updates", *"----", "runs/A-10"]
    assert {line.index("runs/") for line in lines[head + 2 : head + 5]} == {
        lines[head].index("checkpoint")
    }


def test_findings_name_the_rates_that_rows_show() -> None:
    rows = [
        row("A", 3e-3, TRAINED),
        row("B", 3e-3, STUCK),
        row("B", 1e-3, TRAINED),
        row("B", 1e-2, DIVERGED),
        row("C", 3e-3, DIVERGED),
    ]
    assert make_table(Settings(), UNIGRAM_LOSS, rows).splitlines()[-3:] == [
        "A trained at 0.003.",
        "B trained at 0.001, did not train at 0.003 and 0.01.",
        "C did not train at 0.003.",
    ]


def test_text_states_the_settings_of_this_run() -> None:
    settings = Settings(seed=7, updates=80, train_pairs=1234, test_pairs=56)
    table = make_table(settings, 4.0, [row("A", 3e-3, TRAINED)])
    for part in ("seed 7", "1,234 pairs", "80 updates", "last 10 updates", "below 0.40", "of 56 "):
        assert part in table
    assert max(map(len, table.splitlines())) < 120
