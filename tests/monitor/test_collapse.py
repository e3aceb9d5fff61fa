"""The watch says what goes wrong, where and when, and says it once."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sigma_fairseq.monitor.collapse import LEAST_FOR_STUCK, MOST_LOSSES, CollapseWatch
from sigma_fairseq.monitor.records import record_dtype

NAMES = ("encoder.layers.0.self_attn", "encoder.layers.1.self_attn")
DTYPE = record_dtype(2, 3, 1, 0)


def record(update: int, loss: float = 1.0, entropy: Any = 1.0) -> np.ndarray:
    sample = np.zeros((), DTYPE)
    sample["update"], sample["loss"], sample["entropy"] = update, loss, entropy
    sample["entropy_max"], sample["gradient_norm"] = 2.0, 1.0
    return sample


@pytest.fixture
def watch() -> CollapseWatch:
    return CollapseWatch([SimpleNamespace(name=name) for name in NAMES], 0.1)  # type: ignore[misc]


def test_a_collapse_is_named_once_by_update_layer_and_head(watch: CollapseWatch) -> None:
    assert watch.look(record(0)) == []
    (line,) = watch.look(record(10, entropy=[[1, 1, 1], [0.3, 0.1, 0.01]]))
    assert line == (
        "update 10: attention entropy has collapsed: lowest in encoder.layers.1.self_attn, "
        "0.1367 nats over its heads (6.8% of uniform attention's), head 2 with 0.0100 nats"
    )
    assert watch.look(record(20, entropy=[[0.1, 0.1, 0.1]] * 2)) == []


def test_the_lowest_is_by_the_share_of_uniform_attention(watch: CollapseWatch) -> None:
    """Of short sequences less is expected."""
    watch.look(record(0))
    sample = record(10, entropy=[[0.5, 0.5, 0.5], [0.6, 0.6, 0.5]])
    sample["entropy_max"] = [0.7, 9.0]
    (line,) = watch.look(sample)
    assert "lowest in encoder.layers.1.self_attn, 0.5667 nats" in line


def test_an_attention_that_was_always_sharp_has_not_collapsed(watch: CollapseWatch) -> None:
    for update in range(3):
        assert watch.look(record(update, entropy=[[1, 1, 1], [0.1, 0.1, 0.1]])) == []


def test_one_sharp_head_is_no_collapse(watch: CollapseWatch) -> None:
    watch.look(record(0))
    assert watch.look(record(1, entropy=[[1, 1, 0], [1, 0, 0]])) == []


def test_a_dropped_layer_is_no_collapse(watch: CollapseWatch) -> None:
    watch.look(record(0))
    assert watch.look(record(1, entropy=[[1, 1, 1], [math.nan] * 3])) == []


def test_a_loss_that_is_not_finite(watch: CollapseWatch) -> None:
    watch.look(record(0, entropy=[[1, 1, 0.5], [1, 1, 1]]))
    (line,) = watch.look(record(10, loss=math.nan, entropy=math.nan))
    assert line == "update 10: the loss is not finite; no attention entropy is finite"
    (line,) = watch.nonfinite(11, "gradients are not finite")
    assert line.startswith("update 11: gradients are not finite; ")
    assert watch.nonfinite(11, "gradients are not finite") == []


def test_a_growing_loss(watch: CollapseWatch) -> None:
    said = []
    for update in range(60):
        loss = 8 - 0.15 * update if update < 40 else 7.5
        said += watch.look(record(update, loss=loss))
    (line,) = said
    assert "the loss grows: 7.500 bits after 2.150; lowest in encoder.layers.0.self_attn" in line
    assert 40 < int(line.split()[1].rstrip(":")) < 50


def test_a_stuck_loss_is_given_time(watch: CollapseWatch) -> None:
    said = []
    for update in range(2 * LEAST_FOR_STUCK):
        said += watch.look(record(update, loss=8.0 if update < 3 else 6.0))
    (line,) = said
    assert line.startswith(f"update {LEAST_FOR_STUCK - 1}: the loss is stuck at 6.000 bits")


def test_a_long_healthy_run_is_left_alone_and_costs_little_memory(watch: CollapseWatch) -> None:
    random = np.random.default_rng(0)
    for update in range(5 * MOST_LOSSES):
        loss = 2 + 6 * math.exp(-update / 100) + 0.1 * random.standard_normal()
        assert watch.look(record(update, loss=loss)) == []
    assert len(watch._losses) < 2 * MOST_LOSSES
