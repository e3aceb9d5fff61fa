"""The figures of losses and weights: what stands on their axes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from sigma_fairseq.report.page import write_report


@pytest.mark.parametrize(("by_sentence", "unit"), [(False, "target token"), (True, "sentence")])
def test_loss_is_a_mean_over_what_training_takes_it_over(
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    by_sentence: bool,
    unit: str,
) -> None:
    run = make_run("run", layers=1)
    header = json.loads((run / "monitor.json").read_text())
    header["options"]["optimization"]["sentence_avg"] = by_sentence
    (run / "monitor.json").write_text(json.dumps(header))
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, label, **_: labels.append(label))
    write_report([run], tmp_path / "out")
    assert [label for label in labels if "bits" in label] == [f"loss (bits a {unit})"]
