"""What `benchmark.py` measured, as Markdown."""

import math
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from benchmark_training import PARTS

TITLES = {"translation": "Translation", "speech": "Speech", "lm": "Language model"}


class Exponent(NamedTuple):
    """b of y = a·x^b, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:z.2f} ± {self.error:.2f}"


def exponent(x: list[float], y: list[float]) -> Exponent | None:
    """Fits log y = log a + b·log x by least squares; None for fewer than three points or y = 0."""
    if len(x) < 3 or not all(y):
        return None
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    return Exponent(slope, math.sqrt(covariance[0, 0]))


def ratios(times: list[float], reference: list[float]) -> list[float]:
    """Of each step to the reference's step of the same turn."""
    return [mine / theirs for mine, theirs in zip(times, reference, strict=True)]


def markdown(measurements: list[dict[str, Any]]) -> str:
    """A page of all measurements, with the machine and the command of each."""
    lines = [
        "# Benchmark",
        "",
        "Random batches. Times are in ms, the median and in brackets the least and the most of all "
        "steps; × is the ratio to the first row, in times the median of the ratios turn by turn. "
        "`stock` is fairseq's own post-LN transformer, `postln` the plugin's. Power iteration is "
        "all that happens when an update is announced; under `spectral_norm` it is part of the "
        "forward pass. Memory is the peak of a process that trains the model alone. Operations "
        "are those that PyTorch dispatches below autograd, views not counted, in one forward and "
        "backward pass without dropout, and in the power iteration of an update.",
    ]
    for measurement in measurements:
        if measurement["growth"] is None:
            lines += ["", *_comparison(measurement)]
    for against in ("layers", "width"):
        grown = [found for found in measurements if found["growth"] == against]
        if grown:
            lines += ["", *_growth(against, sorted(grown, key=lambda m: m["setting"][against]))]
    return "\n".join(lines) + "\n"


def _comparison(measurement: dict[str, Any]) -> list[str]:
    setting, methods = measurement["setting"], measurement["methods"]
    columns = ["method", "step", "×", *PARTS, "memory, GB", "×", "operations", "×"]
    columns += ["of power iteration", "kernels"]
    generation = any(figures["generation"] for figures in methods.values())
    if generation:
        columns += ["generation", "×"]
    first: dict[str, Any] = next(iter(methods.values()), {})
    rows = []
    for method, figures in methods.items():
        times = figures["times"]
        row = [method, _spread(times["step"]), _ratio(times["step"], first["times"]["step"])]
        row += [_spread(times[part]) for part in PARTS]
        row += [f"{figures['peak_memory'] / 1e9:.2f}"]
        row += [_quotient(figures["peak_memory"], first["peak_memory"])]
        row += [f"{figures['operations']:,}"]
        row += [_quotient(figures["operations"], first["operations"])]
        row += [str(figures["power_iteration_operations"]), str(figures["kernels"] or "")]
        if generation:
            row += [_spread(figures["generation"])]
            row += [_ratio(figures["generation"], first["generation"])]
        rows.append(row)
    unit = "s of audio" if setting["family"] == "speech" else "tokens"
    layers = f"{setting['layers']} layers"
    if setting["family"] == "translation":
        layers += " each"
    title = (
        f"## {TITLES[setting['family']]}, {layers}, {setting['precision']}, "
        f"update-freq {setting['update_freq']}"
    )
    sizes = (
        f"Width {setting['width']}, FFN {setting['ffn']}, {setting['heads']} heads, vocabulary "
        f"{setting['vocabulary']:,}, {setting['tokens']} {unit} a micro-batch, dropout "
        f"{setting['dropout']}; {measurement['steps']} steps."
    )
    failed = [f"{method}: {line}." for method, line in measurement["failed"].items()]
    origin = [sizes, *failed, *_origin([measurement])]
    return [title, "", *_table(columns, rows), "", *origin]


def _growth(against: str, measurements: list[dict[str, Any]]) -> list[str]:
    measured = [found for found in measurements if found["methods"]]
    sizes = [found["setting"][against] for found in measured]
    rows = []
    for method in measurements[0]["methods_asked"]:
        figures = [found["methods"][method] for found in measured if method in found["methods"]]
        if len(figures) < len(measured):
            continue  # of another call, without it
        steps = [median(found["times"]["step"]) for found in figures]
        operations = [found["operations"] for found in figures]
        iteration = [found["power_iteration_operations"] for found in figures]
        row = [method, ", ".join(f"{step:.1f}" for step in steps), _fitted(sizes, steps)]
        row += [", ".join(f"{count:,}" for count in operations), _fitted(sizes, operations)]
        rows.append([*row, ", ".join(map(str, iteration))])
    setting = measurements[0]["setting"]
    fixed = {"layers": f"width {setting['width']}", "width": f"{setting['layers']} layer each"}
    columns = ["method", "step", "exponent", "operations", "exponent", "of power iteration"]
    failed = [
        f"{against} {found['setting'][against]}: {line}."
        for found in measurements
        for line in dict.fromkeys(found["failed"].values())
    ]
    return [
        f"## Growth with {against}: {', '.join(map(str, sizes))}",
        "",
        *_table(columns, rows),
        "",
        f"Translation, {fixed[against]}, {setting['tokens']} tokens, {setting['precision']}; "
        f"medians of {measurements[0]['steps']} steps. An exponent is the slope of a line through "
        "the logarithms, with its standard error.",
        *failed,
        *_origin(measurements),
    ]


def _origin(measurements: list[dict[str, Any]]) -> list[str]:
    lines = []
    for found in measurements:
        machine = found["machine"]
        gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
        lines.append(
            f"`{found['command']}` at commit {found['commit']} on {gpu}{machine['cpu']}, "
            f"{machine['cores']} cores, {machine['threads']} threads; PyTorch {machine['torch']}, "
            f"fairseq {machine['fairseq']}."
        )
    return list(dict.fromkeys(lines))


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _fitted(sizes: list[float], values: list[float]) -> str:
    fit = exponent(sizes, values)
    return str(fit) if fit else ""


def _spread(times: list[float]) -> str:
    return f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


def _ratio(times: list[float], reference: list[float]) -> str:
    found = ratios(times, reference)
    return f"{median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def _quotient(value: float, reference: float) -> str:
    return f"{value / reference:.3f}" if reference else ""
