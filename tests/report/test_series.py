"""What is drawn, against loops over the records."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sigma_fairseq.report import series
from sigma_fairseq.report.runs import (
    ATTENTION_KINDS,
    MATRIX_KINDS,
    Attention,
    Matrix,
    load_run,
)

ATTENTIONS = [
    Attention("decoder.layers.1.self_attn", "decoder self", 1, 2),
    Attention("decoder.layers.0.self_attn", "decoder self", 0, 3),
    Attention("encoder.layers.0.self_attn", "encoder self", 0, 1),
]


@pytest.fixture
def by_head() -> np.ndarray:
    """(5, 3, 3) with NaN where an attention has fewer heads."""
    values = np.random.default_rng(0).random((5, 3, 3)).astype(np.float32)
    for index, attention in enumerate(ATTENTIONS):
        values[:, index, attention.heads :] = np.nan
    return values


def test_mean_and_least_leave_out_heads_that_are_not_there(by_head: np.ndarray) -> None:
    mean = series.mean_of_heads(by_head, ATTENTIONS)
    least = series.least_of_heads(by_head, ATTENTIONS)
    for record in range(5):
        for index, attention in enumerate(ATTENTIONS):
            own = [float(by_head[record, index, head]) for head in range(attention.heads)]
            assert mean[record, index] == pytest.approx(math.fsum(own) / len(own), rel=1e-6)
            assert least[record, index] == min(own)


def test_a_head_that_is_not_finite_does_not_hide_in_the_mean(by_head: np.ndarray) -> None:
    by_head[2, 1, 0] = np.nan
    for of_heads in (series.mean_of_heads, series.least_of_heads):
        expected = np.zeros((5, 3), dtype=bool)
        expected[2, 1] = True
        np.testing.assert_array_equal(np.isnan(of_heads(by_head, ATTENTIONS)), expected)


def test_all_heads_are_those_that_are_there(by_head: np.ndarray) -> None:
    flat = series.all_heads(by_head, ATTENTIONS)
    assert flat.shape == (5, 6)
    np.testing.assert_array_equal(flat[4], by_head[4][~np.isnan(by_head[4])])


def test_layers_are_in_order_whatever_the_order_of_the_records(
    make_run: Callable[..., Path],
) -> None:
    run = load_run(make_run("run", layers=3))
    run.attentions.reverse()
    for kind in ATTENTION_KINDS:
        chosen = [run.attentions[index] for index in series.attentions_of(run, kind)]
        assert [(one.kind, one.layer) for one in chosen] == [(kind, layer) for layer in range(3)]


def test_lowest_layer_is_of_the_last_record(make_run: Callable[..., Path]) -> None:
    folder = make_run("run", layers=4, heads=3)
    records = np.load(folder / "monitor.npy")
    records["entropy"][0] = 0
    np.save(folder / "monitor.npy", records)
    run = load_run(folder)
    last = {
        one.name: records["entropy"][-1, index].mean() for index, one in enumerate(run.attentions)
    }
    lowest = series.lowest_layer(run)
    assert lowest is not None
    assert lowest[0] == pytest.approx(min(last.values()))
    assert lowest[1].name == min(last, key=lambda name: last[name])


def test_lowest_layer_is_the_one_that_is_not_finite(make_run: Callable[..., Path]) -> None:
    folder = make_run("run")
    records = np.load(folder / "monitor.npy")
    records["entropy"][-1, 5, 1] = np.nan
    np.save(folder / "monitor.npy", records)
    run = load_run(folder)
    lowest = series.lowest_layer(run)
    assert lowest is not None
    assert math.isnan(lowest[0])
    assert lowest[1] is run.attentions[5]


def test_gradient_norm_of_a_layer_and_kind_joins_its_matrices() -> None:
    matrices = [
        Matrix("decoder.layers.0.self_attn.q_proj", "query", "decoder", 0),
        Matrix("decoder.layers.0.encoder_attn.q_proj", "query", "decoder", 0),
        Matrix("decoder.layers.1.self_attn.q_proj", "query", "decoder", 1),
        Matrix("decoder.layers.1.fc1", "fc1", "decoder", 1),
        Matrix("encoder.layers.5.fc1", "fc1", "encoder", 5),
        Matrix("decoder.output_projection", "other", "decoder", None),
    ]
    records = np.zeros(1, dtype=[("gradient_norm", "<f4", (6,))])
    records["gradient_norm"] = [3, 4, 7, np.inf, 9, 11]
    norms = series.gradient_norms(records, matrices, "decoder")
    expected = np.full((1, len(MATRIX_KINDS), 2), np.nan)
    expected[0, 0] = [5, 7]
    expected[0, MATRIX_KINDS.index("fc1"), 1] = np.inf
    np.testing.assert_array_equal(norms, expected)


def test_middle_and_range_are_of_what_is_finite() -> None:
    values = np.array([[3, 1, 2], [np.nan, 5, 8], [np.inf, 5, np.nan], [np.nan, np.inf, np.nan]])
    middle, least, greatest = series.middle_and_range(values)
    np.testing.assert_array_equal(middle, [2, 6.5, 5, np.nan])
    np.testing.assert_array_equal(least, [1, 5, 5, np.nan])
    np.testing.assert_array_equal(greatest, [3, 8, 5, np.nan])


@pytest.mark.parametrize("number", [1, 5, 12, 1003])
def test_stretches_keep_every_spike(number: int) -> None:
    draw = np.random.default_rng(number)
    values = draw.random(number).astype(np.float32)
    spike = int(draw.integers(number))
    values[spike] = 40
    if number > 20:
        values[draw.choice(np.delete(np.arange(number), spike), 3)] = [np.nan, np.inf, -np.inf]
    updates = 10 * np.arange(1, number + 1)
    last, mean, least, greatest = series.in_bins(updates, values, 12)
    assert len(last) == min(number, 12)
    assert last[-1] == updates[-1]
    assert greatest.max() == 40
    begin = 0
    for place, update in enumerate(last):
        end = update // 10
        own = [float(value) for value in values[begin:end] if math.isfinite(value)]
        assert mean[place] == pytest.approx(math.fsum(own) / len(own))
        assert (least[place], greatest[place]) == (min(own), max(own))
        begin = end


def test_a_stretch_without_a_finite_value_is_nan() -> None:
    values = np.array([1, 2, np.nan, np.inf])
    _, mean, least, greatest = series.in_bins(np.arange(4), values, 2)
    for figures in (mean, least, greatest):
        np.testing.assert_array_equal(np.isnan(figures), [False, True])
