"""A sweep's figures as tables in Markdown: the paper's Tables 4 and 11, for any sweep."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import NamedTuple, TypeVar

from sigma_fairseq.sweep.settings import HIGHER_IS_BETTER, Evaluation, Point, Sweep
from sigma_fairseq.sweep.training import Result
from sigma_fairseq.verdict import Verdict, judge

_DECIMALS = {"bleu": 1, "wer": 1, "perplexity": 2, "loss": 3}
_TITLES = {"bleu": "BLEU", "wer": "WER", "perplexity": "ppl", "loss": "loss"}
_NOTHING = "-"

#: Word error rate, in percent, of saying nothing.
SILENCE_WER = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A training with what came of it.

    Attributes:
        start_loss: the median, over the sweep's trainings of this depth, of the first loss logged.
        score: what the scores are of, a key of `HIGHER_IS_BETTER`.
    """

    point: Point
    result: Result
    start_loss: float
    score: str = "none"

    @property
    def verdict(self) -> Verdict:
        """Of its losses; a run that did not end counts as diverged unless it was stuck.

        One whose WER is no better than that of saying nothing is stuck.
        """
        if self.result.outcome == "not finite" or not self.result.losses:
            return Verdict.DIVERGED
        verdict = judge([loss for _, loss in self.result.losses], self.start_loss)
        if verdict.fatal:
            return verdict
        if self.result.outcome == "stopped":
            return Verdict.DIVERGED
        # CTC losses fall far below the start's before anything is recognised.
        says_nothing = self.score == "wer" and min(self.result.scores.values()) >= SILENCE_WER
        return Verdict.STUCK if says_nothing else verdict

    @property
    def capped_loss(self) -> float:
        """The final loss, or the start's where training ended above it or not at all."""
        final = self.result.final_loss
        return self.start_loss if math.isnan(final) else min(final, self.start_loss)


def make_rows(results: Sequence[tuple[Point, Result]], score: str = "none") -> list[Row]:
    """Puts the loss at the start, which trainings of a depth share, beside each result.

    Args:
        results: of the trainings.
        score: what their scores are of.
    """
    firsts: dict[int | None, list[float]] = {}
    for point, result in results:
        if result.losses and math.isfinite(result.losses[0][1]):
            firsts.setdefault(point.depth, []).append(result.losses[0][1])
    return [
        Row(point, result, median(firsts.get(point.depth, [math.inf])), score)
        for point, result in results
    ]


class _Column(NamedTuple):
    title: str
    figure: Callable[[Row], float]
    decimals: int
    higher_is_better: bool


def score_table(rows: Sequence[Row], sweep: Sweep) -> str:
    """The table of Section 4.3: a line a method, a group of columns a depth; in Markdown."""
    labels = _unique(method_at(row.point, sweep.select) for row in rows)
    table = [["method", *labels]]
    for depth in _unique(row.point.depth for row in rows):
        groups = []
        for label in labels:
            group = [row for row in rows if row.point.depth == depth]
            group = [row for row in group if method_at(row.point, sweep.select) == label]
            groups.append(_at_best_value(group, sweep))
        prefix = "" if depth is None else f"{depth}L "
        table += [[prefix + cells[0], *cells[1:]] for cells in _depth_cells(groups, sweep)]
    return _markdown(zip(*table, strict=True)) + "\n\n" + _legend(rows, sweep)


def is_learning_rate_sweep(rows: Sequence[Row]) -> bool:
    """Whether every method was trained at several learning rates of the grid."""
    rates: dict[str, set[object]] = {}
    for row in rows:
        rates.setdefault(row.point.method, set()).add(row.point.grid.get("lr"))
    return bool(rates) and min(map(len, rates.values())) > 1


def sensitivity_table(rows: Sequence[Row]) -> str:
    """Learning-rate sensitivity of each method and depth: Wortsman et al., arXiv 2309.14322."""
    groups: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        depth = "" if row.point.depth is None else f", {row.point.depth}L"
        label = method_at(row.point, "lr") + depth
        groups.setdefault(label, {}).setdefault(row.point.seed, []).append(row)
    table = [("method", "sensitivity", "best loss", "learning rates")]
    for label, by_seed in groups.items():
        best = [min(row.capped_loss for row in seed) for seed in by_seed.values()]
        mean = [fmean(row.capped_loss for row in seed) for seed in by_seed.values()]
        excess = [all_rates - least for all_rates, least in zip(mean, best, strict=True)]
        rates = sorted(
            {float(row.point.options["lr"]) for seed in by_seed.values() for row in seed}
        )
        shown = ", ".join(f"{rate:g}" for rate in rates)
        table.append((label, _spread(excess, 3), _spread(best, 3), shown))
    legend = (
        "sensitivity: the mean over the learning rates of min(final loss, loss at the start) minus "
        "the least of them, in bits a token; mean ± standard deviation over the seeds. The loss at "
        "the start is the median of the first ones logged."
    )
    return _markdown(table) + "\n\n" + legend


def _columns(evaluation: Evaluation) -> list[_Column]:
    score = evaluation.score
    columns = [_Column("loss", lambda row: row.result.final_loss, 3, False)]
    if score == "none":
        return columns
    for subset in evaluation.subsets:

        def figure(row: Row, subset: str = subset) -> float:
            return row.result.scores.get(subset, math.nan)

        title = f"{subset} {_TITLES[score]}"
        columns.append(_Column(title, figure, _DECIMALS[score], HIGHER_IS_BETTER[score]))
    return columns


def method_at(point: Point, without: str | None) -> str:
    """The method, with the values of the grid's options other than `without`."""
    grid = [f"{option} {value}" for option, value in point.grid.items() if option != without]
    return ", ".join([point.method, *grid])


def _at_best_value(group: list[Row], sweep: Sweep) -> list[Row]:
    """Of one method at one depth the seeds at the best value of the option to select."""
    if sweep.select is None or not group:
        return group
    column = _columns(sweep.evaluation)[:2][-1]
    by_value: dict[object, list[Row]] = {}
    for row in group:
        by_value.setdefault(row.point.grid[sweep.select], []).append(row)

    def rank(seeds: list[Row]) -> tuple[int, float]:
        lost = sum(row.verdict.fatal for row in seeds)
        mean = _mean_of_ended(seeds, column)
        return lost, -mean if column.higher_is_better else mean

    return min(by_value.values(), key=rank)


def _depth_cells(groups: list[list[Row]], sweep: Sweep) -> list[list[str]]:
    """The columns of one depth, each with its head first."""
    cells = []
    if sweep.select is not None:
        chosen = [str(group[0].point.grid[sweep.select]) if group else _NOTHING for group in groups]
        cells.append([sweep.select, *chosen])
    cells.append(["DV", *map(_lost, groups)])
    for column in _columns(sweep.evaluation):
        means = [_mean_of_ended(group, column) for group in groups]
        finite = [mean for mean in means if math.isfinite(mean)]
        best = (max if column.higher_is_better else min)(finite, default=math.nan)
        texts = [column.title]
        for group, mean in zip(groups, means, strict=True):
            text = _spread([column.figure(row) for row in _ended(group)], column.decimals)
            is_best = round(mean - best, column.decimals) == 0
            texts.append(f"**{text}**" if is_best else text)
        cells.append(texts)
    return cells


def _ended(group: list[Row]) -> list[Row]:
    return [
        row
        for row in group
        if row.result.outcome == "finished" and row.verdict is not Verdict.DIVERGED
    ]


def _mean_of_ended(group: list[Row], column: _Column) -> float:
    figures = [column.figure(row) for row in _ended(group)]
    return fmean(figures) if figures else math.inf


def _lost(group: list[Row]) -> str:
    if not group:
        return _NOTHING
    verdicts = [row.verdict for row in group]
    diverged, stuck = verdicts.count(Verdict.DIVERGED), verdicts.count(Verdict.STUCK)
    return f"{diverged}/{len(group)}" + (f", stuck {stuck}/{len(group)}" if stuck else "")


def _spread(figures: list[float], decimals: int) -> str:
    if not figures:
        return _NOTHING
    mean = f"{fmean(figures):.{decimals}f}"
    return mean if len(figures) == 1 else f"{mean} ± {stdev(figures):.{decimals}f}"


def _legend(rows: Sequence[Row], sweep: Sweep) -> str:
    lines = [
        "DV: runs that diverged; stuck: runs that learned nothing but how frequent tokens are "
        "(`sigma_fairseq/verdict.py` has the rules). The other columns are mean ± standard "
        "deviation over the seeds that did not diverge, the best bold. loss: training loss in bits "
        "a token, over the last eighth of the updates."
    ]
    signatures = _unique(row.result.signature for row in rows if row.result.signature)
    lines += [f"BLEU: sacreBLEU {signature}" for signature in signatures]
    if sweep.evaluation.score == "wer":
        lines.append(
            "WER: word error rate in percent; a run is also stuck when it is 100 or more on all "
            "subsets, as if nothing were said. A token is a letter."
        )
    if sweep.select is not None:
        evaluation = sweep.evaluation
        score = "loss" if evaluation.score == "none" else f"score on {evaluation.subsets[0]}"
        lines.append(
            f"{sweep.select}: of all values the one at which the fewest seeds diverge or are stuck "
            f"and, of those, the {score} is best."
        )
    return "\n".join(lines)


def _markdown(table: Iterable[Sequence[str]]) -> str:
    head, *lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([head, "| --- " * (head.count(" | ") + 1) + "|", *lines])


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
