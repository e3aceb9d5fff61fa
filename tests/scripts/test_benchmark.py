"""The benchmark: what it counts and fits, by hand and by SciPy, and a small run of the command."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from scipy.stats import linregress
from torch import nn

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import benchmark  # noqa: E402
from benchmark_tables import exponent  # noqa: E402
from benchmark_training import (  # noqa: E402
    METHODS,
    OperationCounter,
    Setting,
    Training,
    count_operations,
    generate_in_turns,
    take_turns,
)

TRANSLATION = Setting("translation", 2, 16, 32, 2, 50, 64, 0.1, "fp32", 2)
SPEECH = Setting("speech", 1, 16, 32, 2, 29, 4, 0.1, "amp-bf16", 1)
LANGUAGE_MODEL = Setting("lm", 1, 64, 64, 2, 2000, 64, 0.1, "fp32", 1)


def test_the_count_of_a_perceptron_written_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5, bias=False))
    x = torch.randn(2, 3)
    with OperationCounter() as counter:
        model(x).sum().backward()
    forward = ["addmm", "relu", "mm", "sum"]
    # From the sum's gradient, spread as a view, to the last weight, its input, and the first layer.
    backward = ["ones_like", "mm", "mm", "threshold_backward", "mm", "sum"]
    assert counter.count == len(forward) + len(backward)
    with OperationCounter() as counter:  # the three parameters have gradients now
        model(x).sum().backward()
    assert counter.count == len(forward) + len(backward) + 3


def test_spectral_normalization_dispatches_22_operations_a_weight() -> None:
    x = torch.randn(2, 3)
    counts = []
    for change in (nn.Module.train, nn.utils.parametrizations.spectral_norm):
        model = change(nn.Linear(3, 4, bias=False))
        with OperationCounter() as counter:
            model(x).sum().backward()
        counts.append(counter.count)
    iteration = 2 * ["mv", "linalg_vector_norm", "clamp_min_", "div"]
    forward = ["clone", "clone", "mv", "vdot", "div"]
    through_the_quotient = ["div", "div", "div", "neg", "mul", "sum"]
    through_sigma = ["mul", "mul", "add"]
    assert counts[1] - counts[0] == len(iteration + forward + through_the_quotient + through_sigma)


def test_what_is_counted_is_one_micro_batch_without_dropout_and_an_iteration_apart() -> None:
    setting = replace(TRANSLATION, dropout=0.0, update_freq=1)
    assert count_operations("reparam_postln", TRANSLATION) == count_operations(
        "reparam_postln", setting
    )
    operations, iteration = count_operations("stock", setting)
    assert operations > 0
    assert iteration == 0


@pytest.mark.parametrize("setting", [TRANSLATION, LANGUAGE_MODEL])
def test_ours_has_the_parameters_of_stock(setting: Setting) -> None:
    stock, ours = (Training(method, setting).model for method in ("stock", "postln"))
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (stock, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("setting", [TRANSLATION, SPEECH, LANGUAGE_MODEL])
def test_every_method_takes_its_turns(setting: Setting) -> None:
    methods = [method for method in METHODS if (setting.family, method) != ("speech", "stock")]
    times = take_turns(methods, setting, 1)
    assert list(times) == methods
    for parts in times.values():
        (whole,) = parts.pop("step")
        together = sum(milliseconds for (milliseconds,) in parts.values())
        assert 0.5 * whole < together <= whole


def test_all_generate_to_the_same_length() -> None:
    times = generate_in_turns(["stock", "reparam_postln", "spectral_norm"], TRANSLATION, 2)
    assert all(len(taken) == 2 and min(taken) > 0 for taken in times.values())


def test_the_exponent_is_the_slope_of_scipys_line() -> None:
    x, y = [6.0, 18.0, 50.0, 100.0], [3.1, 8.9, 31.0, 47.0]
    line = linregress(torch.tensor(x).log().numpy(), torch.tensor(y).log().numpy())
    assert exponent(x, y) == pytest.approx((line.slope, line.stderr), rel=1e-5)
    assert exponent(x, [7 * size**1.5 for size in x]) == pytest.approx((1.5, 0), abs=1e-6)
    assert exponent(x, [0, 0, 0, 0]) is None


def run(out: Path) -> "subprocess.CompletedProcess[str]":
    small = "--layers 2 --width 32 --ffn 64 --heads 4 --vocabulary 50 --tokens 64 --steps 3"
    kind = "--family translation --precision fp32 --update-freq 1 --methods stock reparam_postln"
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / "benchmark.py"), "--generation"]
    return subprocess.run(
        [*command, str(out), *small.split(), *kind.split()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_small_run_and_the_same_again(tmp_path: Path) -> None:
    printed = run(tmp_path / "out").stdout
    page = (tmp_path / "out" / "benchmark.md").read_text()
    assert printed == page
    written = (tmp_path / "out" / "benchmark.json").read_text()
    (measurement,) = json.loads(written)["measurements"]
    methods = measurement["methods"]
    assert list(methods) == ["stock", "reparam_postln"] and measurement["failed"] == {}
    assert measurement["command"] in page and measurement["machine"]["cpu"] in page
    times, reference = (methods[name]["times"]["step"] for name in ("reparam_postln", "stock"))
    assert len(times) == len(reference) == 3
    of_turns = [mine / theirs for mine, theirs in zip(times, reference, strict=True)]
    (row,) = re.findall(r"^\| reparam_postln .*$", page, re.M)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
    assert cells[2] == f"{median(of_turns):.3f} ({min(of_turns):.3f} to {max(of_turns):.3f})"
    assert cells[9] == f"{methods['reparam_postln']['operations']:,}"
    assert methods["stock"]["power_iteration_operations"] == 0
    assert methods["stock"]["peak_memory"] > 0
    assert len(methods["stock"]["generation"]) == 3

    again = run(tmp_path / "out")
    assert "kept: family translation" in again.stderr
    assert (tmp_path / "out" / "benchmark.json").read_text() == written
    assert again.stdout == page


def test_too_little_memory_is_a_line_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_process(function: object, *arguments: object) -> object:
        if function is benchmark.figures and arguments[0] == "postln":
            raise MemoryError
        if function is benchmark.figures:
            return {"operations": 1}
        return {method: [1.0] for method in arguments[0]}  # type: ignore[attr-defined]

    monkeypatch.setattr(benchmark, "in_process", in_process)
    found = benchmark.measure(
        {
            "growth": None,
            "setting": TRANSLATION.__dict__,
            "methods_asked": ["stock", "postln", "reparam_postln"],
            "steps": 1,
            "with_generation": False,
        }
    )
    assert list(found["methods"]) == ["stock", "reparam_postln"]
    assert found["failed"] == {"postln": "too little memory"}


def fill_the_memory() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def test_a_process_without_memory_says_so() -> None:
    with pytest.raises(MemoryError):
        benchmark.in_process(fill_the_memory)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--dropout 1", "--dropout 1.0 is not a share from 0 to below 1"),
        ("--family lm --precision amp-bf16", "--family lm needs --precision fp32"),
        ("--family speech --methods stock", "no speech model for --methods stock"),
        ("--width 20 --heads 3", "--width 20 is not a multiple of --heads 3"),
        ("--family translation --tokens 31", "--tokens 31 is less than a sentence of 32"),
        ("--steps 0", "argument --steps: invalid positive value: '0'"),
        ("--methods prelm", "argument --methods: invalid choice: 'prelm'"),
        ("--precision amp-fp16", "--precision amp-fp16 needs a GPU"),
    ],
)
def test_bad_input(
    arguments: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "out", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        benchmark.read_options()
    assert stopped.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
