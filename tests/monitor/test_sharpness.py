"""Sharpness against dense Hessians, and thresholds against the optimizers themselves."""

import functools
import math
import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.optim.adam import Adam
from fairseq.optim.nag import NAG
from torch import Tensor, nn

from sigma_fairseq.monitor import sharpness
from sigma_fairseq.monitor.sharpness import (
    OptimizerSettings,
    Sharpness,
    SharpnessError,
    largest_eigenvalues,
    measure_sharpness,
)
from sigma_fairseq.reparam import SigmaLinear
from tests.conftest import USER_DIR

CPU = torch.device("cpu")


def dense_spectrum(formula: Callable[..., Tensor], parameters: Sequence[Tensor]) -> Any:
    """Eigenvalues, largest first, of the whole Hessian of formula(*parameters)."""
    sizes = [parameter.numel() for parameter in parameters]

    def of_one_vector(vector: Tensor) -> Tensor:
        parts = zip(vector.split(sizes), parameters, strict=True)
        return formula(*(part.view_as(parameter) for part, parameter in parts))

    at = nn.utils.parameters_to_vector(parameters).detach()
    return np.linalg.eigvalsh(torch.func.hessian(of_one_vector)(at).numpy())[::-1]


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def targets() -> Tensor:
    return torch.arange(12) % 3


def test_eigenvalues_are_those_of_the_full_hessian(inputs: Tensor, targets: Tensor) -> None:
    torch.manual_seed(0)
    inner, outer = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
    network = nn.Sequential(inner, nn.Tanh(), inner, nn.Tanh(), outer)  # inner: once, used twice

    def formula(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = torch.tanh(torch.tanh(inputs @ w1.T + b1) @ w1.T + b1)
        return -(hidden @ w2.T + b2).log_softmax(1)[range(12), targets].mean()

    parameters = list(network.parameters())
    found = largest_eigenvalues(
        [lambda: F.cross_entropy(network(inputs), targets)], parameters, 6, 1e-10, seed=1
    )
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, dense_spectrum(formula, parameters)[:6], rtol=1e-8)


def test_sigma_depends_on_the_weight_and_u_and_v_do_not(inputs: Tensor, targets: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(SigmaLinear(4, 5), nn.Tanh(), SigmaLinear(5, 3)).double()
    state = dict(network.named_parameters()) | dict(network.named_buffers())

    def formula(*parameters: Tensor) -> Tensor:
        now = dict(zip((name for name, _ in network.named_parameters()), parameters, strict=True))
        x = inputs
        for layer in ("0", "2"):
            w = now[f"{layer}.parametrizations.weight.original"]
            u, v = (state[f"{layer}.parametrizations.weight.0.{name}"] for name in "uv")
            gamma = now[f"{layer}.parametrizations.weight.0.gamma"]
            x = x @ (gamma * w / (u @ w @ v)).T + now[f"{layer}.bias"]
            x = torch.tanh(x) if layer == "0" else x
        return F.cross_entropy(x, targets)

    parameters = list(network.parameters())
    found = largest_eigenvalues(
        [lambda: F.cross_entropy(network(inputs), targets)], parameters, 4, 1e-10, seed=1
    )
    np.testing.assert_allclose(found, dense_spectrum(formula, parameters)[:4], rtol=1e-8)


def quadratic(diagonal: Sequence[float]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A loss whose Hessian has these eigenvalues, rotated, and its parameters."""
    generator = torch.Generator().manual_seed(0)
    size = len(diagonal)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    hessian = rotation @ torch.tensor(diagonal, dtype=torch.float64).diag() @ rotation.T
    x = torch.randn(size, generator=generator).double().requires_grad_()
    return lambda: x @ hessian @ x / 2, [x]


def test_largest_means_algebraically() -> None:
    loss, parameters = quadratic([*np.linspace(-90, 2, 40), 5.0, 7.0])
    found = largest_eigenvalues([loss], parameters, 2, 1e-10, seed=0)
    np.testing.assert_allclose(found, [7, 5], rtol=1e-9)


def test_terms_add_up_and_an_unused_parameter_counts_zero(inputs: Tensor, targets: Tensor) -> None:
    torch.manual_seed(0)
    network, unused = nn.Linear(4, 3).double(), torch.zeros(2).double().requires_grad_()
    parameters = [*network.parameters(), unused]

    def total(rows: slice) -> Tensor:
        return F.cross_entropy(network(inputs[rows]), targets[rows], reduction="sum")

    whole = largest_eigenvalues([lambda: total(slice(None))], parameters, 3, 1e-10, seed=0)
    parts = [functools.partial(total, rows) for rows in (slice(5), slice(5, 6), slice(6, 12))]
    products = []
    split = largest_eigenvalues(
        parts, parameters, 3, 1e-10, seed=0, on_product=lambda: products.append(1)
    )
    np.testing.assert_allclose(split, whole, rtol=1e-9)
    assert len(products) >= 3


def test_same_seed_same_digits_in_the_parameters_precision() -> None:
    x = torch.linspace(-1, 2, 60).requires_grad_()
    first, second = (
        largest_eigenvalues([lambda: (x**4).sum()], [x], 2, 1e-5, seed=5) for _ in range(2)
    )
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, 12 * x.detach().numpy()[[-1, -2]] ** 2, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_count_out_of_range(count: int) -> None:
    loss, parameters = quadratic([1, 2, 3])
    with pytest.raises(SharpnessError, match=rf"^{count} eigenvalues .* from 1 to 2\b"):
        largest_eigenvalues([loss], parameters, count, 1e-3, seed=0)


def test_no_convergence_says_how_far_it_got(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpness, "MAX_RESTARTS", 1)
    loss, parameters = quadratic([*np.linspace(0, 1, 300), 50.0])
    with pytest.raises(SharpnessError, match=r"found 1 of 3 eigenvalues .* 1e-09 in 1 restarts"):
        largest_eigenvalues([loss], parameters, 3, 1e-9, seed=0)


def test_a_diverged_model_is_named() -> None:
    x = torch.tensor([1.0, math.nan, 2.0], requires_grad=True)
    with pytest.raises(SharpnessError, match="not finite"):
        largest_eigenvalues([lambda: (x**3).sum()], [x], 1, 1e-3, seed=0)


@pytest.mark.parametrize(
    ("name", "build", "unit"),
    [
        ("sgd", functools.partial(torch.optim.SGD, lr=0.01), 1.0),
        ("sgd", functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9), 1.0),
        ("nag", functools.partial(NAG, lr=0.01, momentum=0.9), 1.0),
        # With so large an ε, Adam's preconditioner is ε, which is the unit of λ then.
        ("adam", functools.partial(Adam, lr=0.01, betas=(0.9, 0.9), eps=1e9), 1e9),
        ("adam", functools.partial(Adam, lr=0.01, betas=(0.5, 0.9), eps=1e9), 1e9),
    ],
)
def test_threshold_is_where_the_optimizer_starts_to_diverge(
    name: str, build: Callable[..., torch.optim.Optimizer], unit: float
) -> None:
    def growth(eigenvalue: float) -> float:
        x = nn.Parameter(torch.tensor(1e-12, dtype=torch.float64))  # √v stays far below ε
        optimizer = build([x])
        for _ in range(600):
            x.grad = eigenvalue * unit * x.detach()
            optimizer.step()
        return abs(x.item()) / 1e-12

    (group,) = build([nn.Parameter(torch.ones(()))]).param_groups
    momentum = group["betas"][0] if name == "adam" else group["momentum"]
    threshold = OptimizerSettings(name, group["lr"], momentum).threshold()
    assert threshold is not None
    assert growth(0.97 * threshold) < 1 < 100 < growth(1.03 * threshold)


def test_thresholds_in_figures() -> None:
    assert OptimizerSettings("adam", 1e-3, 0.9).threshold() == pytest.approx(38e3)
    assert OptimizerSettings("adam", 0.0, 0.9).threshold() == math.inf  # a rate decayed to 0
    assert OptimizerSettings("adagrad", 1e-3, 0.0).threshold() is None


@pytest.fixture(scope="module")
def checkpoint(
    fairseq: Callable[..., Any], data_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny trained model: tied embeddings, σReparam, recomputed activations, dropout."""
    folder = tmp_path_factory.mktemp("tiny")
    fairseq(
        "train",
        *(str(data_bin), "--user-dir", USER_DIR, "--cpu", "--save-dir", str(folder)),
        *("--arch", "transformer_reparam_deepnorm_6l", "--share-all-embeddings"),
        *("--encoder-layers", "1", "--decoder-layers", "1", "--checkpoint-activations"),
        *("--encoder-embed-dim", "4", "--encoder-ffn-embed-dim", "4", "--dropout", "0.3"),
        *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
        *("--optimizer", "adam", "--adam-betas", "(0.8, 0.98)", "--lr", "0.01"),
        *("--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10", "--warmup-init-lr", "0"),
        *("--criterion", "cross_entropy", "--batch-size", "16", "--max-update", "4"),
        *("--num-workers", "0", "--disable-validation"),
    )
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def measure(checkpoint: Path, data_bin: Path) -> Callable[..., Sharpness]:
    """measure(**changes) → the sharpness of the tiny model on some 40 tokens."""

    def measure_changed(**changes: Any) -> Sharpness:
        arguments = {
            **{"checkpoint": str(checkpoint), "data": str(data_bin), "subset": "train"},
            **{"tokens": 40, "max_tokens": 1000, "count": 1, "tolerance": 1e-3, "device": CPU},
        }
        return measure_sharpness(**{**arguments, **changes})

    return measure_changed


def edited(checkpoint: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> str:
    """A copy of a checkpoint after `edit` has changed its state."""
    state = torch.load(checkpoint)
    edit(state)
    torch.save(state, tmp_path / "edited.pt")
    return str(tmp_path / "edited.pt")


def test_of_a_checkpoint_by_finite_differences(
    measure: Callable[..., Sharpness], checkpoint: Path, data_bin: Path
) -> None:
    """In float64, by differences of gradients of a loss that is written out here."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)],
        arg_overrides={"data": str(data_bin), "checkpoint_activations": False},
    )
    model.double().eval()
    task.load_dataset("train")
    pairs = task.dataset("train")
    ends = np.cumsum([max(len(pair["source"]), len(pair["target"])) for pair in pairs])
    sentences = int(np.searchsorted(ends, 40)) + 1
    sample = pairs.collater([pairs[index] for index in range(sentences)])
    parameters = list(model.parameters())

    def loss() -> Tensor:
        logits = model(**sample["net_input"])[0]
        return F.cross_entropy(logits.flatten(0, 1), sample["target"].flatten(), ignore_index=1)

    def gradient(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at, parameters)
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss(), parameters)])

    at = nn.utils.parameters_to_vector(parameters).detach()
    wanted_loss = loss().item()
    here, steps = gradient(at), 1e-6 * torch.eye(len(at), dtype=torch.float64)
    hessian = torch.stack([gradient(at + step) - here for step in steps]) / 1e-6
    wanted = torch.linalg.eigvalsh((hessian + hessian.T) / 2).flip(0)[:3]

    found = measure(count=3, tolerance=1e-5, max_tokens=15)
    np.testing.assert_allclose(found.eigenvalues, wanted, rtol=1e-3)
    assert found.loss == pytest.approx(wanted_loss, rel=1e-5)
    assert found.sentences == sentences
    assert found.tokens == int((sample["target"] != 1).sum())
    assert found.parameters == len(at)
    assert found.criterion == "cross_entropy"


def test_learning_rate_is_the_one_in_force(measure: Callable[..., Sharpness]) -> None:
    """4 of 10 updates into a warm-up from 0 to 0.01."""
    optimizer = measure().optimizer
    assert optimizer is not None
    assert (optimizer.name, optimizer.momentum) == ("adam", 0.8)
    assert optimizer.learning_rate == pytest.approx(0.004)


def test_micro_batches_do_not_move_it(measure: Callable[..., Sharpness]) -> None:
    apart, together = (measure(max_tokens=size, tolerance=1e-5) for size in (1, 1000))
    np.testing.assert_allclose(apart.eigenvalues, together.eigenvalues, rtol=1e-4)
    assert apart.tokens == together.tokens


def test_half_precision_checkpoints_are_read_as_fp32(
    measure: Callable[..., Sharpness], checkpoint: Path, tmp_path: Path
) -> None:
    def narrow(state: dict[str, Any]) -> None:
        state["model"] = {name: value.half() for name, value in state["model"].items()}

    def rounded(state: dict[str, Any]) -> None:
        state["model"] = {name: value.half().float() for name, value in state["model"].items()}

    eigenvalues = [
        measure(checkpoint=edited(checkpoint, tmp_path, edit)).eigenvalues
        for edit in (narrow, rounded)
    ]
    assert eigenvalues[0] == eigenvalues[1]


def test_optimizers_without_a_threshold(
    measure: Callable[..., Sharpness], checkpoint: Path, tmp_path: Path
) -> None:
    def adagrad(state: dict[str, Any]) -> None:
        state["cfg"]["optimizer"] = Namespace(optimizer="adagrad")  # it has no dataclass
        state["last_optimizer_state"]["param_groups"] = [{"lr": 0.1}]

    def without_state(state: dict[str, Any]) -> None:
        state["last_optimizer_state"] = None

    known = measure()
    other = measure(checkpoint=edited(checkpoint, tmp_path, adagrad))
    assert other.optimizer == OptimizerSettings("adagrad", 0.1, 0.0)
    assert "threshold   unknown for adagrad; known for adam, nag, sgd\n" in other.table()
    assert "share" not in other.table()
    nothing = measure(checkpoint=edited(checkpoint, tmp_path, without_state))
    assert nothing.optimizer is None
    assert "unknown: the checkpoint holds no optimizer state" in nothing.table()
    assert known.eigenvalues == other.eigenvalues == nothing.eigenvalues


def test_table() -> None:
    result = Sharpness(
        eigenvalues=[57000.0, -19.0],
        optimizer=OptimizerSettings("adam", 1e-3, 0.9),
        criterion="cross_entropy",
        loss=1.5,
        sentences=200,
        tokens=4100,
        parameters=1234567,
    )
    assert result.table() == (
        "rank   eigenvalue  share of the threshold\n"
        "   1        57000                 150.00%\n"
        "   2          -19                  -0.05%\n"
        "\n"
        "threshold   38000: adam, learning rate 0.001, β1 0.9\n"
        "loss        1.5000 nats, cross_entropy, dropout off\n"
        "sample      200 sentences, 4,100 target tokens\n"
        "parameters  1,234,567"
    )


# fairseq closes a map of the empty file that it could not make.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bad_input_is_one_line(
    measure: Callable[..., Sharpness], checkpoint: Path, data_bin: Path, tmp_path: Path
) -> None:
    def short(state: dict[str, Any]) -> None:
        state["cfg"]["task"]["max_source_positions"] = 1

    (tmp_path / "text").write_text("no checkpoint")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    larger, empty = tmp_path / "larger", tmp_path / "empty"
    for folder in (larger, empty):
        shutil.copytree(data_bin, folder)
    for language in ("en", "de"):
        with (larger / f"dict.{language}.txt").open("a") as dictionary:
            dictionary.write("word 1\n")
        part = str(empty / f"train.en-de.{language}")
        MMapIndexedDatasetBuilder(f"{part}.bin").finalize(f"{part}.idx")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"checkpoint": str(tmp_path / "missing.pt")}, "missing.pt is not a checkpoint"),
        (
            {"checkpoint": str(tmp_path / "text")},
            "text is not a checkpoint to read: Unsupported",
        ),
        ({"checkpoint": str(tmp_path / "other.pt")}, "other.pt is not a checkpoint"),
        ({"data": str(tmp_path / "nowhere")}, "does not load with .*nowhere: .*No such file"),
        ({"data": str(tmp_path)}, "does not load with .*: Could not infer language pair"),
        ({"data": str(larger)}, "does not load with .*larger: size mismatch"),
        ({"subset": "dev"}, "'dev'"),
        ({"data": str(empty)}, "no subset 'train' to read: .*empty"),
        ({"checkpoint": edited(checkpoint, tmp_path, short)}, "'train' has no sentence"),
        ({"count": 10**6}, "1000000 eigenvalues are not from 1 to"),
    ]
    for changes, message in cases:
        with pytest.raises(SharpnessError, match=message) as raised:
            measure(**changes)
        assert "\n" not in str(raised.value)


def test_a_loss_without_second_derivatives_is_named(
    measure: Callable[..., Sharpness], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("derivative for aten::_ctc_loss_backward is not implemented\nmore")

    monkeypatch.setattr(sharpness, "largest_eigenvalues", without)
    with pytest.raises(SharpnessError, match=r"_ctc_loss_backward is not implemented$"):
        measure()
