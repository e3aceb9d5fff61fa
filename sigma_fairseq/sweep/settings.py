"""What a sweep trains: its YAML file, read and checked, as a list of trainings."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sigma_fairseq.expressions import calls_something
from sigma_fairseq.sweep.processes import SweepError

#: What a grid takes, and fairseq gets as the option of that name.
Value = str | int | float | bool
Options = Mapping[str, Value]

#: Score of the evaluation → whether higher is better.
HIGHER_IS_BETTER = {"bleu": True, "wer": False, "perplexity": False, "loss": False, "none": False}

#: What models are scored on if a sweep does not say: fairseq's own names.
SUBSETS = ["valid", "test"]

#: Options of fairseq that the sweep gives itself → what to write instead.
OWN_OPTIONS = {
    "seed": "give a list of seeds",
    "save-dir": "give out",
    "user-dir": "it is this package",
    "log-format": "the sweep reads the log",
}

_KEYS = {
    "the sweep": (
        *("data", "out", "options", "methods", "depths", "seeds", "grid", "select"),
        *("evaluate", "jobs"),
    ),
    "evaluate": ("score", "tokenize", "options", "subsets"),
}


@dataclass(frozen=True)
class Point:
    """One training of a sweep.

    Attributes:
        method: its line in the table.
        depth: what `{depth}` stood for, or None.
        grid: options that the grid goes over, with their values here.
        seed: fairseq's `--seed`.
        options: all other options of fairseq-train, those of the grid included.
    """

    method: str
    depth: int | None
    grid: Options
    seed: int
    options: Options

    @property
    def name(self) -> str:
        """Of its folder: unlike that of every other point of the sweep."""
        parts = [self.method]
        if self.depth is not None:
            parts.append(f"{self.depth}l")
        parts += [f"{option}{value}".replace("e+", "e") for option, value in self.grid.items()]
        return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in [*parts, f"seed{self.seed}"])


@dataclass(frozen=True)
class Evaluation:
    """How models are scored.

    Attributes:
        score: a key of `HIGHER_IS_BETTER`.
        tokenize: sacreBLEU's tokenizer.
        options: of the tool that scores: fairseq-generate (bleu, wer), fairseq-eval-lm (perplexity
            of the task language_modeling) or fairseq-validate (loss, other perplexities).
        subsets: of the data; by the score on the first of them the table selects.
    """

    score: str
    tokenize: str
    options: Options
    subsets: list[str] = field(default_factory=SUBSETS.copy)


@dataclass(frozen=True)
class Sweep:
    """Trainings on the same data, and what to make of them.

    Attributes:
        data: what fairseq-preprocess wrote.
        out: where each training has its folder.
        points: the trainings, in the order of the table.
        evaluation: of each model.
        select: a grid option that the table shows at its best value only.
        jobs: trainings at a time; None for one on each GPU, or one on the CPU.
    """

    data: Path
    out: Path
    points: tuple[Point, ...]
    evaluation: Evaluation
    select: str | None = None
    jobs: int | None = None


def load_sweep(file: Path) -> Sweep:
    """Reads a sweep from a YAML file.

    Paths in it are relative to its folder.

    Raises:
        SweepError: one line that says what is wrong with the file, and what is allowed.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
        return make_sweep(content, file.resolve().parent, file.stem)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        # What PyYAML says is spread over lines.
        raise SweepError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    except SweepError as error:
        raise SweepError(f"{file}: {error}") from error


def make_sweep(content: Any, folder: Path, name: str) -> Sweep:
    """Makes a sweep of what the file holds.

    Args:
        content: what YAML makes of the file.
        folder: that relative paths are of.
        name: of the sweep, for the folder below `runs` when there is no `out`.

    Raises:
        SweepError: see `load_sweep`.
    """
    _check_keys(content, "the sweep")
    for needed in ("data", "methods"):
        if needed not in content:
            raise SweepError(f"{needed} is missing")
    data = folder / _typed(content["data"], str, "data", "a folder")
    if not data.is_dir():
        raise SweepError(f"data: {data} is not a folder")
    points = tuple(_points(content))
    names = [point.name for point in points]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise SweepError(f"two trainings have the name {doubled[0]}")
    select = content.get("select")
    if select is not None and select not in content.get("grid", {}):
        raise SweepError(f"select: {select} is not in the grid")
    jobs = content.get("jobs")
    if jobs is not None and not (type(jobs) is int and jobs > 0):
        raise SweepError(f"jobs: {jobs!r} is not a whole number from 1 on")
    out = folder / _typed(content.get("out", f"runs/{name}"), str, "out", "a folder")
    return Sweep(data, out, points, _evaluation(content.get("evaluate", {})), select, jobs)


def _points(content: dict[str, Any]) -> Iterable[Point]:
    methods = _typed(content["methods"], dict, "methods", "names with options")
    if not methods:
        raise SweepError("methods: there are none")
    common = _options(content.get("options", {}), "options")
    grid = _typed(content.get("grid", {}), dict, "grid", "options with lists of values")
    for option, values in grid.items():
        _check_option(option, "grid")
        _list(values, f"grid: {option}")
    seeds = _integers(content.get("seeds", [1]), "seeds", 0)
    depths = _integers(content["depths"], "depths", 1) if "depths" in content else [None]
    for method, options in methods.items():
        where = f"methods: {method}"
        own = dict(_typed(options, dict, where, "options"))
        own_depths = (
            _integers(own.pop("depths"), f"{where}: depths", 1) if "depths" in own else depths
        )
        # An option of the grid may have a list, or one value, of the method's own.
        axes = {option: own.pop(option, values) for option, values in grid.items()}
        axes = {
            option: _list(values if isinstance(values, list) else [values], f"{where}: {option}")
            for option, values in axes.items()
        }
        fixed = {**common, **_options(own, where)}
        if "arch" not in fixed:
            raise SweepError(f"{where}: arch is missing")
        pattern = str(fixed["arch"])
        if "{depth}" in pattern and own_depths == [None]:
            raise SweepError(f"{where}: arch has {{depth}}, but there are no depths")
        for depth, *values, seed in product(own_depths, *axes.values(), seeds):
            chosen = dict(zip(axes, values, strict=True))
            arch = pattern.replace("{depth}", str(depth))
            yield Point(str(method), depth, chosen, seed, {**fixed, **chosen, "arch": arch})


def _evaluation(content: Any) -> Evaluation:
    _check_keys(content, "evaluate")
    score = content.get("score", "none")
    if score not in HIGHER_IS_BETTER:
        raise SweepError(f"evaluate: score: {score!r} is not one of {', '.join(HIGHER_IS_BETTER)}")
    tokenize = _typed(content.get("tokenize", "13a"), str, "evaluate: tokenize", "a name")
    options = _options(content.get("options", {}), "evaluate: options")
    subsets = _list(content.get("subsets", SUBSETS), "evaluate: subsets")
    return Evaluation(score, tokenize, options, subsets)


def _check_keys(content: Any, where: str) -> None:
    allowed = _KEYS[where]
    for key in _typed(content, dict, where, "keys with values"):
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SweepError(f"{where} has no key {key}{hint} (allowed: {', '.join(allowed)})")


def _options(content: Any, where: str) -> dict[str, Value]:
    options = _typed(content, dict, where, "options with values")
    for option, value in options.items():
        _check_option(option, where)
        _check_value(value, f"{where}: {option}")
    return options


def _list(content: Any, where: str) -> list[Any]:
    values: list[Any] = _typed(content, list, where, "a list")
    if not values:
        raise SweepError(f"{where} is an empty list")
    for value in values:
        _check_value(value, where)
    return values


def _integers(content: Any, where: str, least: int) -> list[Any]:
    values = _list(content, where)
    for value in values:
        if type(value) is not int or value < least:
            raise SweepError(f"{where}: {value!r} is not a whole number from {least} on")
    return values


def _check_option(option: Any, where: str) -> None:
    if not re.fullmatch(r"[\w-]+", str(option)):
        raise SweepError(f"{where}: {option!r} is not the name of an option")
    if option in OWN_OPTIONS:
        raise SweepError(f"{where}: {option} is not for the file: {OWN_OPTIONS[option]}")


def _check_value(value: Any, where: str) -> None:
    if not isinstance(value, Value):
        raise SweepError(f"{where}: {value!r} is not a word, a number, true or false")
    # fairseq evaluates some of its options as Python.
    if calls_something(value):
        raise SweepError(f"{where}: {value!r} calls something, and a sweep is data")


def _typed(content: Any, kind: type, where: str, expected: str) -> Any:
    if not isinstance(content, kind):
        raise SweepError(f"{where}: {expected} expected, not {content!r}")
    return content
