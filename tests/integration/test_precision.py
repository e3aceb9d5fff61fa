"""Mixed and low precision: σ, γ, u, v and γ/σ(W)·W stay fp32, the matrix products do not."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sigma_fairseq.reparam import sigma_norms
from tests.conftest import USER_DIR, run_fairseq
from tests.integration.training import (
    COMMON,
    FAMILIES,
    build_trainer,
    first_epoch,
    losses_of,
    update,
    write_data,
)

aten = torch.ops.aten
#: What --fp16 flattens is on a GPU, always.
ON_CPU = ("--fp16-no-flatten-grads", "--fp16-init-scale", "4")
PRECISIONS = {
    "amp": (torch.bfloat16, ("--amp",)),
    "fp16": (torch.float16, ("--fp16", *ON_CPU)),
    "bf16": (torch.bfloat16, ()),
    "memory-efficient-fp16": (torch.float16, ("--memory-efficient-fp16", *ON_CPU)),
}


@pytest.fixture(scope="module")
def data(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data folder for each family."""
    folder = tmp_path_factory.mktemp("families")
    write_data(folder, data_bin)
    return folder


def build(family: str, precision: str, data: Path, save_dir: Path, *args: str) -> Trainer:
    flags = PRECISIONS[precision][1]
    return build_trainer(family, data / family, save_dir, *flags, *args, bf16=precision == "bf16")


def autocast(precision: str) -> AbstractContextManager:
    """What fairseq's --amp does on a GPU; by itself it leaves the CPU in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp")


class Operands(TorchDispatchMode):
    """Collects the matrices that go into matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in (aten.mm, aten.addmm, aten.convolution):
            operands = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim > 1]
            self.matrices += [operand.detach().flatten(1).clone() for operand in operands]
        return func(*args, **(kwargs or {}))

    def contain(self, block: Tensor) -> bool:
        """Whether `block` is one of them, or rows or columns of one, but for a stray rounding."""
        rows, columns = block.shape
        for matrix in (m for pair in self.matrices for m in (pair, pair.T)):
            if matrix.dtype != block.dtype or matrix.shape[1] != columns:
                continue
            for start in range(len(matrix) - rows + 1):
                differing = (matrix[start : start + rows] != block).sum()
                if differing <= 1 + block.numel() // 100:
                    return True
        return False


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_products_take_the_fp32_weight_rounded_once(
    family: str, precision: str, data: Path, tmp_path: Path
) -> None:
    """Against γ/(uᵀWv)·W in double precision: a σ of half precision would move every fourth entry.

    The rate is 0, so that W afterwards is what it was.
    """
    trainer = build(family, precision, data, tmp_path, "--lr", "0")
    for norm, _ in sigma_norms(trainer.get_model()):
        norm.gamma.data.fill_(0.987654)  # which neither half precision has
    batch = first_epoch(trainer)[0]
    with autocast(precision), Operands() as operands:
        update(trainer, [batch])
    low = PRECISIONS[precision][0]
    weights = list(sigma_norms(trainer.get_model()))
    assert weights
    for norm, blocks in weights:
        stack = torch.cat(blocks).detach().double()
        sigma = norm.u.double() @ stack @ norm.v.double()
        for block in blocks:
            expected = (norm.gamma.detach().double() / sigma * block.detach().double()).to(low)
            assert operands.contain(expected), tuple(block.shape)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_and_resumes(family: str, precision: str, data: Path, tmp_path: Path) -> None:
    trainer = build(family, precision, data, tmp_path)
    batch = first_epoch(trainer)[0]
    norms = [norm for norm, _ in sigma_norms(trainer.get_model())]
    start = torch.stack([norm.gamma.detach().clone() for norm in norms])
    losses = []
    for _ in range(12):
        with autocast(precision):
            losses.append(update(trainer, [batch]))
        for norm in norms:
            assert norm.gamma.dtype == norm.u.dtype == norm.v.dtype == torch.float32
            assert norm.gamma.grad is not None
            assert norm.gamma.grad.dtype == torch.float32
    moved = torch.stack([norm.gamma.detach() for norm in norms]) - start
    assert (moved.abs() > 1e-4).all()
    assert losses[-1] < 0.7 * losses[0]

    file = str(tmp_path / "checkpoint.pt")
    position = {"epoch": 1, "version": 2, "iterations_in_epoch": 0}
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(file, {"train_iterator": position})
    resumed = build(family, precision, data, tmp_path / "resumed")
    resumed.load_checkpoint(file)
    saved = torch.load(file, weights_only=True)["model"]
    for name, value in resumed.get_model().state_dict().items():
        if "_float_tensor" in name:  # of no meaning, and its memory is left as it is found
            continue
        assert torch.equal(value.float(), saved[name].float()), name
        if name.endswith((".gamma", ".u", ".v")):
            assert value.dtype == torch.float32
    with autocast(precision):
        assert update(resumed, [batch]) == update(trainer, [batch])


def falls(log: str) -> bool:
    """Whether the training loss has fallen by three tenths in 30 updates."""
    losses = losses_of(log)
    return len(losses) == 30 and sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("flag", ["--amp", "--fp16", "--memory-efficient-fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_trains_on_a_gpu(family: str, flag: str, data: Path, tmp_path: Path) -> None:
    options = [word for word in (*COMMON, *FAMILIES[family]) if word != "--cpu"]
    options += ["--max-update", "30", "--no-save", "--disable-validation", flag]
    options += ["--log-format", "json", "--log-interval", "1", "--save-dir", str(tmp_path)]
    result = run_fairseq("train", str(data / family), *options)
    assert falls(result.stdout + result.stderr)


def test_bf16_by_hydra(data: Path, tmp_path: Path) -> None:
    """Of fairseq-train, --bf16 is for TPUs."""
    (tmp_path / "narrow.yaml").write_text(f"""
# @package _group_
common: {{user_dir: {USER_DIR}, bf16: true, cpu: {not torch.cuda.is_available()}, seed: 7,
  log_format: json, log_interval: 1, no_progress_bar: true}}
task: {{_name: translation, data: {data / "translation"}}}
model: {{_name: transformer_reparam_deepnorm_6l, encoder_layers: 1, decoder_layers: 1,
  encoder_embed_dim: 16, encoder_ffn_embed_dim: 32, encoder_attention_heads: 4,
  decoder_attention_heads: 4, share_all_embeddings: true, dropout: 0}}
criterion: {{_name: label_smoothed_cross_entropy, label_smoothing: 0.1}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{lr: [1e-2], max_update: 30}}
dataset: {{batch_size: 16, num_workers: 0, disable_validation: true}}
checkpoint: {{no_save: true}}
""")
    config = ("--config-dir", str(tmp_path), "--config-name", "narrow")
    run_fairseq("hydra_train", *config, f"hydra.run.dir={tmp_path}")
    assert falls((tmp_path / "hydra_train.log").read_text())
