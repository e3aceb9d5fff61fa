"""Files from elsewhere are data: what would run code in them is refused, and not run.

More of it: fairseq-generate in test_fairseq_commands.py, fuse and import in tests/checkpoints, run
folders in tests/report, sweeps in tests/sweep/test_settings.py, archives in tests/recipes.
"""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq_cli import train

from sigma_fairseq.cli import main
from tests.integration.training import COMMON, FAMILIES, parse

ROOT = Path(__file__).parents[2]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(params=["zip", "legacy", "plain pickle"])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint, in each format that PyTorch reads, whose model would make the folder `ran`."""
    file, state = tmp_path / "bad.pt", {"model": Payload(tmp_path / "ran")}
    if request.param == "plain pickle":
        file.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=request.param == "zip")
    return file


@pytest.mark.parametrize("option", ["--restore-file", "--finetune-from-model"])
def test_training_does_not_start_from_it(
    data_bin: Path, bad: Path, tmp_path: Path, option: str
) -> None:
    words = [str(data_bin), "--save-dir", f"{tmp_path}/save", option, str(bad)]
    cfg = parse([*words, *COMMON, *FAMILIES["translation"]])
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train.main(cfg)
    assert not (tmp_path / "ran").exists()


def test_sharpness_does_not_measure_it(
    data_bin: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sharpness", str(bad), str(data_bin), "--cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sigma-fairseq sharpness: {bad} is not a checkpoint to read: ")
    assert error.count("\n") == 1
    assert "weights_only" not in error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("verb", ["sharpness", "fuse", "import"])
def test_options_in_a_checkpoint_are_not_run(
    verb: str, data_bin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fairseq evaluates some, as these cutoffs."""
    code = f"__import__('os').mkdir({str(tmp_path / 'ran')!r}) or (6, 9)"
    model = {"_name": "transformer_lm", "adaptive_softmax_cutoff": code}
    task = {"_name": "language_modeling", "data": str(data_bin)}
    bad, out = tmp_path / "bad.pt", str(tmp_path / "out.pt")
    state = {
        **{"args": None, "cfg": {"model": model, "task": task}, "model": {}},
        **{"optimizer_history": [{"lr_scheduler_state": {}}], "last_optimizer_state": None},
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save(state, bad)
    more = {"sharpness": [data_bin], "fuse": [out], "import": [out, "--arch", "transformer_lm"]}
    assert main([verb, str(bad), *map(str, more[verb])]) == 1
    error = capsys.readouterr().err
    assert "its option model.adaptive_softmax_cutoff would run code" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_nor_do_models_run_theirs(build_lm: Callable[..., Any], tmp_path: Path) -> None:
    code = f"__import__('os').mkdir({str(tmp_path / 'ran')!r}) or (6, 9)"
    cutoffs = {"adaptive_input_cutoff": code, "adaptive_softmax_cutoff": code}
    with pytest.raises(ValueError, match="would run code"):
        build_lm("transformer_lm_preln_wiki103_16l", **cutoffs)
    assert not (tmp_path / "ran").exists()


#: What would read a file as a program, or turn PyTorch's safe mode off.
UNSAFE = re.compile(
    r"weights_only\s*=\s*False|NO_WEIGHTS_ONLY_LOAD|allow_pickle\s*=\s*True|pickle\.loads?\b"
    r"|(?<![\w.])(?:eval|exec)\(|yaml\.(?:unsafe_|full_)?load\b|shell\s*=\s*True|os\.system"
    r"|extractall\((?!.*filter)"
)


def test_nothing_in_the_project_trusts_a_file() -> None:
    files = [
        path
        for folder in ("sigma_fairseq", "scripts", "recipes", "examples")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".sh", ".yaml")
    ]
    assert len(files) > 100
    found = {path: UNSAFE.findall(path.read_text(encoding="utf-8")) for path in files}
    assert not {path: places for path, places in found.items() if places}
