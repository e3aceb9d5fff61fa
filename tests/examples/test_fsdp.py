"""The example of sharding, run as a user runs it, on two processes of the CPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sigma_fairseq.reparam import fuse, power_iteration, sigma_norms

SCRIPT = Path(__file__).parents[2] / "examples" / "fsdp.py"
STEPS = 20


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fsdp", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words: str, processes: int = 0) -> "subprocess.CompletedProcess[str]":
    """Runs the example by itself, or by torchrun; without a GPU, so that all machines compare."""
    by = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return subprocess.run(
        [sys.executable, "-W", "ignore", *(by if processes else ()), str(SCRIPT), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_are_one_without_sharding(example: ModuleType, tmp_path: Path) -> None:
    """Losses, W, γ, u and v of the same batches, by PyTorch's own clipping on whole weights."""
    file = tmp_path / "model.pt"
    result = run("--steps", str(STEPS), "--save", str(file), processes=2)
    assert result.returncode == 0, result.stderr

    model = example.build_model()
    gammas = [norm.gamma for norm, _ in sigma_norms(model)]
    own = {id(gamma) for gamma in gammas}
    plain = [weight for weight in model.parameters() if id(weight) not in own]
    optimizer = example.build_optimizer(plain, gammas)
    losses, norms = [], []
    for batch in example.batches(STEPS):
        power_iteration(model)
        loss = example.loss_of(model, batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), example.MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(norms) > example.MAX_NORM  # so that each update depends on the norm of all shards
    assert losses[-1] < 0.8 * losses[0]
    logged = re.findall(r"^step \d+: loss (\S+)$", result.stdout, re.M)
    assert [float(loss) for loss in logged] == pytest.approx(losses, rel=1e-4)

    loaded = example.build_model()
    loaded.load_state_dict(torch.load(file))
    weights = dict(loaded.named_parameters())
    for name, value in model.named_parameters():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
    # As outer products: u and v may both have turned round.
    vectors, expected = (
        [torch.outer(norm.u, norm.v) for norm, _ in sigma_norms(each)] for each in (loaded, model)
    )
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    batch = next(example.batches(1))
    before = example.loss_of(loaded, batch)
    torch.testing.assert_close(example.loss_of(fuse(loaded), batch), before)


def test_usage() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "--steps" in shown.stdout


@pytest.mark.parametrize(
    ("world_size", "message"),
    [(None, "start it by torchrun"), ("3", "3 processes cannot share a batch of 16 evenly")],
)
def test_mistakes_are_one_line(
    world_size: str | None,
    message: str,
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["fsdp.py"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert capsys.readouterr().err.endswith(f"fsdp.py: error: {message}\n")
