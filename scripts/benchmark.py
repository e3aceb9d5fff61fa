#!/usr/bin/env python3
"""What σReparam costs: steps of a training beside those of fairseq's own post-LN transformer.

    benchmark.py OUT                                  every table, in sizes that fit the machine
    benchmark.py OUT --family translation --layers 18 --precision amp-bf16 --update-freq 1
    benchmark.py OUT --family lm --methods postln reparam_noln --tokens 9216

The models of a table are trained in one process and their steps take turns; peak memory is that of
a process that trains one alone. OUT/benchmark.json gets every time that was taken, OUT/benchmark.md
the tables. What is in OUT already, of the same settings, machine and commit, is not measured again.

There is no speech model in fairseq to compare with, so there the reference is the plugin's own
post-LN model without σReparam. fairseq's adaptive inputs, in language models, do not work under
mixed precision.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import fairseq
import torch
from benchmark_tables import markdown
from benchmark_training import (
    METHODS,
    PRECISIONS,
    SENTENCE,
    Setting,
    count_operations,
    figures,
    generate_in_turns,
    take_turns,
)


class Sizes(NamedTuple):
    """Of a family's models and of what is measured with them."""

    layers: tuple[int, ...]
    width: int
    ffn: int
    heads: int
    tokens: int
    vocabulary: int
    precisions: tuple[str, ...]
    dropout: float


class Plan(NamedTuple):
    """What is measured unless options say otherwise; growth is with depth and with width."""

    families: dict[str, Sizes]
    update_freq: tuple[int, ...]
    steps: int
    growth_layers: tuple[int, ...]
    growth_widths: tuple[int, ...]


FULL = Plan(
    {
        "translation": Sizes((6, 18, 50, 100), 512, 2048, 8, 4096, 41_000, tuple(PRECISIONS), 0.1),
        "speech": Sizes((36,), 768, 3072, 4, 240, 29, tuple(PRECISIONS), 0.3),
        "lm": Sizes((16,), 1024, 4096, 8, 9216, 267_744, ("fp32",), 0.3),
    },
    update_freq=(1, 16),
    steps=20,
    growth_layers=(6, 18, 50, 100),
    growth_widths=(256, 512, 1024, 2048),
)
QUICK = Plan(
    {
        "translation": Sizes((6,), 128, 512, 4, 512, 4000, ("fp32",), 0.1),
        "speech": Sizes((6,), 128, 512, 4, 30, 29, ("fp32",), 0.3),
        "lm": Sizes((6,), 128, 512, 4, 1024, 20_000, ("fp32",), 0.3),
    },
    update_freq=(1,),
    steps=5,
    growth_layers=(6, 18, 50),
    growth_widths=(256, 512, 1024),
)
#: Of the translation models that grow, narrow where they grow deeper, of a layer where wider.
GROWTH = Setting("translation", 1, 64, 256, 4, 1000, 64, 0.0, "fp32", update_freq=1)


def main() -> None:
    """Runs the command line; see the module's text."""
    command = shlex.join(["scripts/benchmark.py", *sys.argv[1:]])
    options = read_options()
    file = options.out / "benchmark.json"
    measurements: list[dict[str, Any]] = (
        json.loads(file.read_text())["measurements"] if file.exists() else []
    )
    here = {"commit": commit(), "machine": machine()}
    for wanted in chosen(options):
        wanted = {**wanted, **here}
        same = [found for found in measurements if wanted.items() <= found.items()]
        say(("kept: " if same else "") + description(wanted))
        if same:
            continue
        found = measure(wanted)
        measurements = [old for old in measurements if not replaces(wanted, old)]
        measurements.append({**wanted, "command": command, **found})
        options.out.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps({"measurements": measurements}, indent=1) + "\n")
        partial.replace(file)
    page = markdown(measurements)
    file.with_suffix(".md").write_text(page)
    print(page, end="")


def read_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="What no option sets is on a GPU, or with --full: translation of 6, 18, 50 and 100 "
        "layers each, speech of 36 and language models of 16, in full width, in fp32 and (but for "
        "language models) in amp of both kinds, of 1 and 16 micro-batches, 20 steps each; growth "
        "to 100 layers and a width of 2048. Otherwise: narrow models of 6 layers, in fp32, 5 steps "
        "each, and growth to 50 layers and a width of 1024, which takes some minutes.",
    )
    parser.add_argument("out", type=Path, help="folder for benchmark.json and benchmark.md")
    parser.add_argument("--full", action="store_true", help="also without a GPU: hours")
    parser.add_argument(
        "--family",
        nargs="*",
        choices=FULL.families,
        default=list(FULL.families),
        help="none: growth alone",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="the first is what the others are compared with (default: %(default)s)",
    )
    parser.add_argument("--layers", nargs="+", type=positive, metavar="N")
    parser.add_argument("--width", type=positive)
    parser.add_argument("--ffn", type=positive, help="width between the layers of the FFN")
    parser.add_argument("--heads", type=positive)
    parser.add_argument("--vocabulary", type=positive)
    parser.add_argument(
        "--tokens", type=positive, help="of a micro-batch, padding in; speech: seconds of audio"
    )
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    parser.add_argument("--update-freq", nargs="+", type=positive, metavar="N")
    parser.add_argument("--steps", type=positive, help="that are timed, of each model")
    parser.add_argument(
        "--generation", action="store_true", help="also time the beam search of translation models"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help="also measure how time and operations grow with depth and width",
    )
    options = parser.parse_args()
    options.plan = FULL if options.full or torch.cuda.is_available() else QUICK
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be measured.

    Raises:
        ValueError: in one line, what it is.
    """
    if options.dropout is not None and not 0 <= options.dropout < 1:
        raise ValueError(f"--dropout {options.dropout} is not a share from 0 to below 1")
    if options.precision and "amp-fp16" in options.precision and not torch.cuda.is_available():
        raise ValueError("--precision amp-fp16 needs a GPU; allowed here: fp32, amp-bf16")
    if options.precision and "lm" in options.family and set(options.precision) != {"fp32"}:
        raise ValueError(
            "--family lm needs --precision fp32: fairseq's adaptive inputs have no amp"
        )
    if "speech" in options.family and options.methods == ["stock"]:
        raise ValueError("fairseq has no speech model for --methods stock")
    for setting in settings(options):
        if setting.width % setting.heads:
            raise ValueError(
                f"--width {setting.width} is not a multiple of --heads {setting.heads}"
            )
        if setting.family == "translation" and setting.tokens < SENTENCE:
            raise ValueError(f"--tokens {setting.tokens} is less than a sentence of {SENTENCE}")


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        ValueError: it is none.
    """
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """Of all comparisons that the options ask for."""
    for family in options.family:
        sizes = options.plan.families[family]
        names = ("width", "ffn", "heads", "vocabulary", "tokens", "dropout")
        given = {name: getattr(options, name) for name in names}
        common = {
            name: getattr(sizes, name) if value is None else value for name, value in given.items()
        }
        for layers, precision, update_freq in product(
            options.layers or sizes.layers,
            options.precision or sizes.precisions,
            options.update_freq or options.plan.update_freq,
        ):
            if precision == "amp-fp16" and not torch.cuda.is_available():
                continue
            yield Setting(
                family=family,
                layers=layers,
                precision=precision,
                update_freq=update_freq,
                **common,
            )


def growing(options: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """The settings of growth, each after the name of what grows."""
    base = replace(GROWTH, precision=(options.precision or [GROWTH.precision])[0])
    for layers in options.plan.growth_layers:
        yield "layers", replace(base, layers=layers)
    for width in options.plan.growth_widths:
        yield "width", replace(base, width=width, ffn=4 * width)


def chosen(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The measurements to take, each by what tells it from all others."""
    steps = options.steps or options.plan.steps
    for setting in settings(options):
        no_stock = setting.family == "speech"
        yield {
            "growth": None,
            "setting": asdict(setting),
            "methods_asked": [
                method for method in options.methods if not (no_stock and method == "stock")
            ],
            "steps": steps,
            "with_generation": options.generation and setting.family == "translation",
        }
    for against, setting in growing(options) if options.growth else ():
        yield {
            "growth": against,
            "setting": asdict(setting),
            "methods_asked": options.methods,
            "steps": steps,
            "with_generation": False,
        }


def replaces(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether both are of the same table."""
    return all(new[name] == old[name] for name in ("growth", "setting"))


def measure(wanted: dict[str, Any]) -> dict[str, Any]:
    """Takes one of `chosen`; returns the figures by method, and what went wrong by method."""
    setting, steps = Setting(**wanted["setting"]), wanted["steps"]
    if wanted["growth"]:
        return measure_growth(wanted["methods_asked"], setting, steps)
    found: dict[str, dict[str, Any]] = {}
    failed = {}
    for method in wanted["methods_asked"]:
        try:
            found[method] = in_process(figures, method, setting)
        except MemoryError:
            failed[method] = "too little memory"
            say(f"  {method}: {failed[method]}")
    try:
        times = in_process(take_turns, list(found), setting, steps)
        generation = (
            in_process(generate_in_turns, list(found), setting, steps)
            if wanted["with_generation"]
            else {}
        )
    except MemoryError:
        line = "too little memory for all models side by side, fewer --methods need less"
        say(f"  {line}")
        return {"methods": {}, "failed": {**failed, **dict.fromkeys(found, line)}}
    methods = {
        method: {**found[method], "times": times[method], "generation": generation.get(method)}
        for method in found
    }
    return {"methods": methods, "failed": failed}


def measure_growth(methods: list[str], setting: Setting, steps: int) -> dict[str, Any]:
    """As `measure`, times and operations alone."""
    try:
        found = in_process(count_and_take_turns, methods, setting, steps)
    except MemoryError:
        line = "too little memory for all models side by side, fewer --methods need less"
        say(f"  {line}")
        return {"methods": {}, "failed": dict.fromkeys(methods, line)}
    return {"methods": found, "failed": {}}


def count_and_take_turns(methods: list[str], setting: Setting, steps: int) -> dict[str, Any]:
    """Operations and times by method."""
    counts = {method: count_operations(method, setting) for method in methods}
    times = take_turns(methods, setting, steps)
    return {
        method: {
            "operations": operations,
            "power_iteration_operations": iteration,
            "times": times[method],
        }
        for method, (operations, iteration) in counts.items()
    }


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own.

    Raises:
        MemoryError: there was too little of it, on the GPU or for the process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError from error
        except RuntimeError as error:
            if "memory" in str(error):
                raise MemoryError from error
            raise


def description(wanted: dict[str, Any]) -> str:
    """A line about a measurement, for whoever waits."""
    setting = wanted["setting"]
    names = ("family", "layers", "width", "tokens", "precision", "update_freq")
    line = ", ".join(f"{name} {setting[name]}" for name in names)
    return f"growth with {wanted['growth']}: {line}" if wanted["growth"] else line


def machine() -> dict[str, Any]:
    """What the times depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": str(torch.__version__),
        "fairseq": fairseq.__version__,
    }


def commit() -> str:
    """Of the project, with `-dirty` after it where files differ from it."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip() or "unknown"


def say(line: str) -> None:
    """Tells whoever waits."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
