"""Losses and gradients that are not finite, under each precision of fairseq's trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer
from torch import Tensor, nn

from sigma_fairseq.criterions.monitored import COLLAPSED
from sigma_fairseq.criterions.nonfinite import MOST_IN_A_ROW
from tests.integration.training import build_trainer, first_epoch, update

PRECISIONS = {
    "fp32": (),
    "amp": ("--amp",),
    "fp16": ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "4"),
    "memory-efficient-fp16": ("--memory-efficient-fp16", "--fp16-init-scale", "4"),
    "bf16": (),
}
#: Whose gradient is the first to be computed of those that are broken.
FIRST = "decoder.layers.0.final_layer_norm.bias"


def build(precision: str, data: Path, save_dir: Path, *args: str) -> Trainer:
    flags = (*PRECISIONS[precision], "--decoder-layers", "2", *args)
    return build_trainer("translation", data, save_dir, *flags, bf16=precision == "bf16")


class BrokenGradient(torch.autograd.Function):
    """The identity, with a gradient that is no number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.nan


@contextmanager
def broken(layer: nn.Module, *, loss: bool = False, updates: int = 99) -> Iterator[None]:
    """The layer's output has a broken gradient, or is no number itself, so many times."""
    times = count(1)

    def act(module: nn.Module, args: Any, output: Any) -> Any:
        x, *rest = output
        if next(times) > updates:
            return output
        return (x * torch.nan if loss else BrokenGradient.apply(x), *rest)

    handle = layer.register_forward_hook(act)
    try:
        yield
    finally:
        handle.remove()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.get_model().named_parameters()}


#: Gradients that only overflow under a loss scale are fairseq's affair.
CASES = [("fp32", "gradient"), ("bf16", "gradient"), *((name, "loss") for name in PRECISIONS)]


def lines_about(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "not finite" in record.message]


@pytest.mark.parametrize(("precision", "what"), CASES)
def test_skip(
    precision: str, what: str, data_bin: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(precision, data_bin, tmp_path, "--on-nonfinite", "skip")
    layer = trainer.get_model().decoder.layers[0]
    batches = first_epoch(trainer)
    for batch in batches[:2]:
        update(trainer, [batch])
    before = weights(trainer)
    with broken(layer, loss=what == "loss"):
        update(trainer, batches[2:4])
    lines = lines_about(caplog)
    assert [line.rpartition("; ")[2] for line in lines] == [f"left out, {n} so far" for n in (1, 2)]
    for line in lines:
        if what == "gradient":
            assert f": gradients are not finite, first that of {FIRST};" in line
        else:
            assert ": the loss and gradients are not finite, first that of " in line
    after = weights(trainer)
    assert all(value.isfinite().all() for value in after.values())
    if precision == "fp32":  # elsewhere fairseq takes what is missing for 0, and Adam coasts on
        assert all(torch.equal(after[name], before[name]) for name in before)
    assert update(trainer, batches[4:5]) > 0
    assert any(not torch.equal(weights(trainer)[name], after[name]) for name in after)


def test_what_comes_after_it_in_an_update_counts(data_bin: Path, tmp_path: Path) -> None:
    """By SGD, of which a step is the mean gradient: here the second micro-batch's over both."""
    sgd = ("--on-nonfinite", "skip", "--optimizer", "sgd", "--lr", "1", "--seed", "3")
    steps = []
    for part in (slice(0, 2), slice(1, 2)):
        trainer = build("fp32", data_bin, tmp_path, *sgd)
        bad, good = first_epoch(trainer)[:2]
        before = weights(trainer)
        with broken(trainer.get_model().decoder.layers[0], updates=len(range(2)[part]) - 1):
            update(trainer, [bad, good][part])
        share = good["ntokens"] / sum(batch["ntokens"] for batch in [bad, good][part])
        after = weights(trainer)
        steps.append({name: (after[name] - before[name]) / share for name in before})
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "what"), CASES)
def test_stop(
    precision: str, what: str, data_bin: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(precision, data_bin, tmp_path)
    batch = first_epoch(trainer)[0]
    before = weights(trainer)
    with (
        broken(trainer.get_model().decoder.layers[0], loss=what == "loss"),
        pytest.raises(FloatingPointError, match="not finite, first that of "),
    ):
        update(trainer, [batch])
    (line,) = lines_about(caplog)
    if what == "gradient":
        assert f": gradients are not finite, first that of {FIRST}; " in line
    else:
        assert ": the loss and gradients are not finite, first that of " in line
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_exit_status_of_on_collapse(precision: str, data_bin: Path, tmp_path: Path) -> None:
    trainer = build(precision, data_bin, tmp_path, "--on-collapse", "stop")
    with broken(trainer.get_model().decoder.layers[0], loss=True), pytest.raises(SystemExit) as end:
        update(trainer, first_epoch(trainer)[:1])
    assert end.value.code == COLLAPSED


def test_a_training_that_is_lost_ends(
    data_bin: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build("fp32", data_bin, tmp_path, "--on-nonfinite", "skip")
    model = trainer.get_model()
    batch = first_epoch(trainer)[0]
    with broken(model.decoder.layers[0]):
        for _ in range(MOST_IN_A_ROW - 1):
            update(trainer, [batch])
    update(trainer, [batch])  # and so there are none in a row
    model.encoder.layers[0].fc1.parametrizations.weight.original.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError):
        for _ in range(MOST_IN_A_ROW):
            update(trainer, [batch])
    assert "nor is the weight encoder.layers.0.fc1." in lines_about(caplog)[-1]
    assert f"left out, {2 * MOST_IN_A_ROW - 2} so far" in lines_about(caplog)[-2]
