"""Options that fairseq-train does not know are found before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from sigma_fairseq.sweep.options import check_options
from sigma_fairseq.sweep.processes import SweepError
from sigma_fairseq.sweep.settings import Evaluation, Point, Sweep


def sweep(**options: Any) -> Sweep:
    options = {name.replace("_", "-"): value for name, value in options.items()}
    options = {"arch": "transformer_postln_6l", "optimizer": "adam", "lr": 1e-3, **options}
    point = Point("mine", None, {}, 1, options)
    return Sweep(Path("data"), Path("out"), (point,), Evaluation("none", "13a", {}))


def test_options_of_architecture_optimizer_and_task_are_known() -> None:
    check_options(
        sweep(reparam="sigma", adam_betas="(0.9, 0.98)", source_lang="en", cpu=True, fp16=False)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adam_beta": 1}, "fairseq-train: unrecognized arguments: --adam-beta=1"),
        ({"max_update": "many"}, "fairseq-train: argument --max-update: invalid int value: 'many'"),
        ({"norm": "preLN"}, "fairseq-train: argument --norm: invalid choice: 'preLN'"),
        (
            {"arch": "transformer_postlm_6l"},
            "there is no architecture transformer_postlm_6l; did you mean transformer_postln_6l?",
        ),
    ],
)
def test_what_fairseq_does_not_know_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SweepError) as raised:
        check_options(sweep(**options))
    assert str(raised.value).startswith("methods: mine: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
