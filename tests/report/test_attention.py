"""Figures of attention: a layer that collapses goes dark."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sigma_fairseq.report.attention import draw_entropy
from sigma_fairseq.report.runs import load_run
from sigma_fairseq.report.series import Sampled
from sigma_fairseq.report.style import figure_style, line_styles

MakeRun = Callable[..., Path]

VIRIDIS_AT_0 = (0x44, 0x01, 0x54)
VIRIDIS_AT_1 = (0xFD, 0xE7, 0x25)


def part_of_colour(folder: Path, colour: tuple[int, int, int]) -> float:
    """How much of the encoder's map is of a colour."""
    run = load_run(folder)
    with figure_style():
        for _ in draw_entropy([Sampled(run, "run", run.records, *line_styles(1))], folder):
            pass
    picture = Image.open(folder / "entropy_encoder_self_map.png")
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return float((abs(pixels - colour).max(axis=2) < 12).mean())


def test_collapse_is_dark_and_health_is_not(make_run: MakeRun) -> None:
    bad = make_run("bad", collapses=True, layers=4, updates=900)
    assert part_of_colour(bad, VIRIDIS_AT_0) > 0.1
    assert part_of_colour(make_run("good", layers=4, updates=900), VIRIDIS_AT_0) < 0.01


def test_the_length_of_sentences_does_not_show_in_the_map(make_run: MakeRun) -> None:
    folder = make_run("run", layers=2)
    records = np.load(folder / "monitor.npy")
    uniform = np.log(np.random.default_rng(0).integers(2, 60, (len(records), 1)))
    records["entropy_max"] = uniform
    records["entropy"] = uniform[..., None]
    np.save(folder / "monitor.npy", records)
    assert part_of_colour(folder, VIRIDIS_AT_1) > 0.5
