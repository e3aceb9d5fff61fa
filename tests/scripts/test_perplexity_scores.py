"""Perplexities out of logs; that they are the right ones is with the recipe's tests."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "perplexity_scores.py"
LOG = """\
INFO:fairseq_cli.eval_lm:{'task': {'tokens_per_sample': 512}, 'eval_lm': {'context_window': 256}}
INFO:fairseq_cli.eval_lm:Evaluated 1,217,646 tokens in 36.6s (2679.13 tokens/s)
INFO:fairseq_cli.eval_lm:Loss (base 2): 4.1699, Perplexity: 18.00
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module: importing PyTorch anew for every test would take most of the time."""
    spec = spec_from_file_location("perplexity_scores", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "perplexity_scores", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = {"optimizer_history": [{"num_updates": 7}, {"num_updates": 12}]}
    torch.save(state, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def test_scores_of_two_splits(
    script: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "valid.log").write_text(LOG)
    (tmp_path / "test.log").write_text(LOG.replace("18.00", "19.25"))
    assert script.main(["--checkpoint", str(checkpoint), str(tmp_path), "valid", "test"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "valid: perplexity 18.00, 1,217,646 tokens",
        "test: perplexity 19.25, 1,217,646 tokens",
    ]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores) == ["valid", "test"]
    assert scores["valid"] == {
        **{"perplexity": 18.0, "loss": 4.1699, "tokens": 1_217_646},
        **{"tokens_per_sample": 512, "context_window": 256, "updates": 12},
    }


@pytest.mark.parametrize("lines", [0, 2])
def test_an_evaluation_that_did_not_finish(
    script: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: int
) -> None:
    (tmp_path / "valid.log").write_text("".join(LOG.splitlines(keepends=True)[:lines]))
    assert script.main(["--checkpoint", str(checkpoint), str(tmp_path), "valid"]) == 1
    message = f"{tmp_path}/valid.log: no perplexity at the end; evaluation did not finish"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "scores.json").exists()
