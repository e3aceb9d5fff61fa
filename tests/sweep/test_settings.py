"""A sweep's file: which trainings it asks for, and what it is refused for."""

import json
from pathlib import Path
from textwrap import dedent

import pytest

from sigma_fairseq.sweep.processes import SweepError
from sigma_fairseq.sweep.settings import Evaluation, Sweep, load_sweep

FULL = """
data: bin
out: out/here
options:
  adam-betas: (0.9, 0.98)
  cpu: true
methods:
  post-LN:
    arch: transformer_postln_{depth}l
  QK-norm + x: {arch: "transformer_preln_{depth}l", qk-norm: true, cpu: false}
depths: [6, 18]
seeds: [1, 2]
grid:
  lr: [3e-4, 1e-3]
select: lr
evaluate: {score: bleu, tokenize: char, options: {beam: 5}, subsets: [dev-clean, test]}
jobs: 3
"""
SMALL = "data: bin\nmethods: {a: {arch: x}}\n"


def load(folder: Path, text: str) -> Sweep:
    (folder / "bin").mkdir(exist_ok=True)
    file = folder / "rates.yaml"
    file.write_text(dedent(text), encoding="utf-8")
    return load_sweep(file)


def test_every_combination_is_a_point_with_its_options(tmp_path: Path) -> None:
    sweep = load(tmp_path, FULL)
    assert len(sweep.points) == 2 * 2 * 2 * 2
    assert len({point.name for point in sweep.points}) == 16
    first, last = sweep.points[0], sweep.points[-1]
    assert first.name == "post-LN-6l-lr0.0003-seed1"
    assert (first.method, first.depth, first.grid, first.seed) == ("post-LN", 6, {"lr": 3e-4}, 1)
    assert first.options == {
        "adam-betas": "(0.9, 0.98)",
        "cpu": True,
        "arch": "transformer_postln_6l",
        "lr": 3e-4,
    }
    assert last.name == "QK-norm-x-18l-lr0.001-seed2"
    assert last.options["arch"] == "transformer_preln_18l"
    assert (last.options["qk-norm"], last.options["cpu"]) == (True, False)


def test_rest_of_the_file(tmp_path: Path) -> None:
    sweep = load(tmp_path, FULL)
    assert (sweep.data, sweep.out) == (tmp_path / "bin", tmp_path / "out/here")
    assert (sweep.select, sweep.jobs) == ("lr", 3)
    assert sweep.evaluation == Evaluation("bleu", "char", {"beam": 5}, ["dev-clean", "test"])


def test_small_file_has_defaults(tmp_path: Path) -> None:
    sweep = load(tmp_path, SMALL)
    assert [point.name for point in sweep.points] == ["a-seed1"]
    assert sweep.out == tmp_path / "runs" / "rates"
    assert sweep.evaluation == Evaluation("none", "13a", {}, ["valid", "test"])
    assert (sweep.select, sweep.jobs) == (None, None)


def test_method_may_have_depths_and_grid_values_of_its_own(tmp_path: Path) -> None:
    text = """
    data: bin
    methods:
      a: {arch: "x_{depth}l"}
      b: {arch: "y_{depth}l", lr: [1, 2], depths: [50]}
      c: {arch: "z_{depth}l", lr: 7}
    depths: [6]
    grid: {lr: [3]}
    """
    points = load(tmp_path, text).points
    assert [(point.method, point.depth, point.options["lr"]) for point in points] == [
        ("a", 6, 3),
        ("b", 50, 1),
        ("b", 50, 2),
        ("c", 6, 7),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "grids: {lr: [1]}", "the sweep has no key grids; did you mean grid? (allowed: da"),
        (SMALL + "evaluate: {scor: bleu}", "evaluate has no key scor; did you mean score? (allow"),
        (SMALL + "evaluate: {score: cer}", "'cer' is not one of bleu, wer, perplexity, loss"),
        (SMALL + "evaluate: {subsets: test}", "evaluate: subsets: a list expected, not 'test'"),
        (SMALL + "seeds: []", "seeds is an empty list"),
        (SMALL + "grid: {lr: []}", "grid: lr is an empty list"),
        (SMALL + "grid: {lr: 1}", "grid: lr: a list expected, not 1"),
        (SMALL + "grid: {seed: [1]}", "grid: seed is not for the file: give a list of seeds"),
        (SMALL + "seeds: [one]", "seeds: 'one' is not a whole number from 0 on"),
        (SMALL + "depths: [0]", "depths: 0 is not a whole number from 1 on"),
        (SMALL + "jobs: many", "jobs: 'many' is not a whole number from 1 on"),
        (SMALL + "select: lr", "select: lr is not in the grid"),
        (SMALL + "options: {save-dir: x}", "options: save-dir is not for the file: give out"),
        (SMALL + "options: {lr: [1, 2]}", "options: lr: [1, 2] is not a word, a number, true or"),
        (SMALL + "options: fast", "options: options with values expected, not 'fast'"),
        ("data: bin\nmethods: {}", "methods: there are none"),
        ("data: bin\nmethods: {a: {lr: 1}}", "methods: a: arch is missing"),
        ("data: bin\nmethods: {a: {arch: 'x_{depth}l'}}", "arch has {depth}, but there are no"),
        (
            "data: bin\nmethods: {a b: {arch: x}, a-b: {arch: x}}",
            "two trainings have the name a-b-",
        ),
        ("methods: {a: {arch: x}}", "data is missing"),
        ("data: gone\nmethods: {a: {arch: x}}", "gone is not a folder"),
        ("data: bin\ndata: bin", "found duplicate key data"),
        (SMALL + "options: {user-dir=x: true}", "'user-dir=x' is not the name of an option"),
        ("- a", "the sweep: keys with values expected, not ['a']"),
        ("a: {b: c_{d}l}", "cannot read"),
        ("", "data is missing"),
    ],
)
def test_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SweepError) as raised:
        load(tmp_path, text)
    assert message in str(raised.value)
    assert str(tmp_path / "rates.yaml") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_values_that_fairseq_evaluates(tmp_path: Path) -> None:
    """As it takes them for --adam-betas, --eval-bleu-args and --model-overrides."""
    values = {
        "adam-betas": "(0.9, 0.98)",
        "eval-bleu-args": '{"beam": 4, "lenpen": 0.6}',
        "model-overrides": "{'dropout': 0.1, 'encoder_layers_to_keep': '0,2'}",
        "restore-file": "a b (1)/c.pt",
        "train-subset": "(" * 9999,
    }
    options = "".join(f"  {option}: |-\n    {value}\n" for option, value in values.items())
    (point,) = load(tmp_path, SMALL + "options:\n" + options).points
    assert point.options == {**values, "arch": "x"}


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os').mkdir('ran')",
        "(0.9, __import__('os').mkdir('ran'))",
        "{'adaptive_softmax_cutoff': \"__import__('os').mkdir('ran')\"}",
        "[print(x) for x in (1, 2)]",
    ],
)
@pytest.mark.parametrize("key", ["options", "grid", "methods", "evaluate"])
def test_values_that_fairseq_would_run_are_refused(tmp_path: Path, key: str, value: str) -> None:
    quoted = json.dumps(value)
    text = {
        "options": SMALL + f"options: {{adam-betas: {quoted}}}",
        "grid": SMALL + f"grid: {{adam-betas: ['(0.9, 0.98)', {quoted}]}}",
        "methods": f"data: bin\nmethods: {{a: {{arch: x, adam-betas: {quoted}}}}}",
        "evaluate": SMALL + f"evaluate: {{options: {{adam-betas: {quoted}}}}}",
    }[key]
    with pytest.raises(SweepError, match="calls something, and a sweep is data"):
        load(tmp_path, text)


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir [ran]", "name:os.mkdir", "module:os"])
def test_yaml_makes_no_python_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SweepError, match=r"cannot read .*could not determine a constructor"
    ) as raised:
        load(tmp_path, SMALL + f"out: !!python/{tag}")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"cannot read .*gone.yaml: .*No such file"):
        load_sweep(tmp_path / "gone.yaml")
