"""LARS against its formula in NumPy, PyTorch's SGD and timm's LARS; and inside fairseq."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer, build_optimizer, shard_
from numpy.typing import NDArray
from omegaconf import OmegaConf
from timm.optim import lars as timm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sigma_fairseq.optim.lars import Lars
from sigma_fairseq.optim.learning_rate_scale import LearningRateScale
from sigma_fairseq.reparam import SigmaLinear, sigma_norms
from tests.conftest import USER_DIR

WEIGHTS = [(6, 5), (3, 4, 7), (1, 4, 3)]
VECTORS = [(5,), (), (1,), (7, 1), (1, 1, 3)]
RATES = (0.0, 0.5, 0.5, 0.1, 0.0, 1.0)

Arrays = list[NDArray[Any]]


def draw(shapes: list[tuple[int, ...]], seed: int, size: float = 1.0) -> Arrays:
    generator = np.random.default_rng(seed)
    return [size * generator.standard_normal(shape) for shape in shapes]


def gradients_of(weights: Arrays, step: int, size: float = 0.1) -> list[NDArray[Any] | None]:
    """Drawn, except that the first is missing at step 2, and the second is zero at step 3."""
    gradients: list[Any] = draw([w.shape for w in weights], 100 + step, size)
    if step == 2:
        gradients[0] = None
    if step == 3:
        gradients[1] *= 0
    return gradients


def formula(
    weights: Arrays,
    gradients: Callable[[int], list[NDArray[Any] | None]],
    rates: tuple[float, ...],
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    scale_vectors: bool = False,
    decay_vectors: bool = False,
) -> Arrays:
    """The weights after one step at each rate, a tensor at a time in float64."""
    weights = [np.array(w) for w in weights]
    buffers = [np.zeros_like(w) for w in weights]
    for step, rate in enumerate(rates):
        for w, v, g in zip(weights, buffers, gradients(step), strict=True):
            if g is None:
                continue
            vector = w.size == max(w.shape, default=1)
            decay = 0.0 if vector and not decay_vectors else weight_decay
            w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            if (vector and not scale_vectors) or w_norm == 0 or g_norm == 0:
                ratio = 1.0
            else:
                ratio = trust_coefficient * w_norm / (g_norm + decay * w_norm + eps)
            v[...] = momentum * v + rate * ratio * (g + decay * w)
            w[...] = w - v
    return weights


def run(
    weights: Arrays,
    gradients: Callable[[int], list[NDArray[Any] | None]],
    rates: tuple[float, ...],
    dtype: torch.dtype = torch.float64,
    kind: type[torch.optim.Optimizer] = Lars,
    **options: Any,
) -> Arrays:
    """The same with an optimizer."""
    params = [nn.Parameter(torch.tensor(w, dtype=dtype)) for w in weights]
    optimizer = kind(params, lr=rates[0], **options)
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        for p, g in zip(params, gradients(step), strict=True):
            p.grad = None if g is None else torch.tensor(g, dtype=dtype)
        optimizer.step()
    return [p.detach().numpy() for p in params]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0, "trust_coefficient": 0.02},
        {"weight_decay": 0.3, "eps": 0.5},
        {"weight_decay": 0.3, "scale_vectors": True},
        {"weight_decay": 0.3, "decay_vectors": True},
        {"weight_decay": 0.3, "scale_vectors": True, "decay_vectors": True},
    ],
)
def test_the_formula(options: dict[str, Any]) -> None:
    """Also under changing rates, with missing and zero gradients and zero weights."""
    weights = [*draw(WEIGHTS + VECTORS, seed=0), np.zeros((3, 2)), np.zeros((2, 4))]

    def gradients(step: int) -> list[NDArray[Any] | None]:
        *some, last = gradients_of(weights, step)
        assert last is not None
        return [*some, 0 * last]  # of a weight that is zero itself

    wanted = formula(weights, gradients, RATES, **options)
    for got, expected in zip(run(weights, gradients, RATES, **options), wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_fp32_when_gradients_grow_and_shrink() -> None:
    """The error stays at the rounding of the weights, however much lengths differ from before."""
    weights = draw([(40, 30)], seed=0)
    sizes = (1.0, 1e-3, 1e3, 1.0, 1e-4, 1.0)

    def gradients(step: int) -> list[NDArray[Any] | None]:
        return [*draw([(40, 30)], seed=step, size=sizes[step])]

    (got,) = run(weights, gradients, (1.0,) * 6, torch.float32)
    (expected,) = formula(weights, gradients, (1.0,) * 6)
    assert np.abs(got - expected).max() < 6 * np.finfo(np.float32).eps * np.abs(expected).max()


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_vectors_take_the_steps_of_sgd(decay: float) -> None:
    weights = draw(VECTORS, seed=1)
    options = {"momentum": 0.9, "weight_decay": decay}

    def gradients(step: int) -> list[NDArray[Any] | None]:
        return gradients_of(weights, step)

    wanted = run(weights, gradients, (0.1,) * 5, kind=torch.optim.SGD, **options)
    got = run(weights, gradients, (0.1,) * 5, decay_vectors=True, **options)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_timm_has_the_same_at_a_constant_rate(decay: float) -> None:
    weights = draw(WEIGHTS, seed=2)
    options = {"momentum": 0.9, "weight_decay": decay}

    def gradients(step: int) -> list[NDArray[Any] | None]:
        return [*draw([w.shape for w in weights], step)]

    wanted = run(
        weights,
        gradients,
        (0.5,) * 5,
        kind=timm.Lars,
        trust_coeff=0.001,
        always_adapt=True,
        **options,
    )
    for one, other in zip(run(weights, gradients, (0.5,) * 5, **options), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


class OperationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(layers: int) -> Counter[str]:
    """Those of the second step of a model of so many layers."""
    shapes = [(4, 6), (6, 4), (6,)] * layers
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = Lars(params, lr=0.1, weight_decay=0.1)
    optimizer.step()
    with OperationCounter() as counter:
        optimizer.step()
    return counter.counts


def test_as_many_operations_for_more_layers_and_no_wait_for_the_device() -> None:
    few, many = operations(2), operations(20)
    assert few == many
    assert not any("item" in name or "_local_scalar_dense" in name for name in many)


def test_one_buffer_a_parameter() -> None:
    parameter = nn.Parameter(torch.ones(30, 20))
    parameter.grad = torch.ones_like(parameter)
    optimizer = Lars([parameter], lr=0.1)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[parameter].values()) == 600 + 1


def test_groups_have_options_of_their_own() -> None:
    plain, hot = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = Lars([{"params": [plain]}, {"params": [hot], "trust_coefficient": 0.01}], lr=0.5)
    plain.grad, hot.grad = torch.full((2, 2), 3.0), torch.full((2, 2), 3.0)
    assert optimizer.step(lambda: 7.0) == 7.0
    torch.testing.assert_close(plain.detach(), torch.full((2, 2), 1 - 0.5 * 0.001))
    torch.testing.assert_close(hot.detach(), torch.full((2, 2), 1 - 0.5 * 0.01))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("lr", [-0.1], "lr -0.1 is below 0"),
        ("momentum", -0.1, "momentum -0.1 is not from 0 to below 1"),
        ("momentum", 1.0, "momentum 1.0 is not from 0 to below 1"),
        ("weight_decay", -1.0, "weight_decay -1.0 is below 0"),
        ("weight_decay", float("nan"), "weight_decay nan is below 0"),
        ("trust_coefficient", 0.0, "trust_coefficient 0.0 is not above 0"),
        ("lars_eps", -1e-8, "eps -1e-08 is below 0"),
    ],
)
def test_options_out_of_range(option: str, value: Any, message: str) -> None:
    config = OmegaConf.create({"_name": "lars", "lr": [0.1], option: value})
    with pytest.raises(ValueError, match=f"^LARS: {message}$"):
        build_optimizer(config, [nn.Parameter(torch.ones(2, 2))])


def mixed_precision(**common: Any) -> Any:
    return OmegaConf.create(
        {
            "optimizer": {"_name": "lars", "lr": [0.5], "weight_decay": 0.1},
            "optimization": {"update_freq": [1]},
            "distributed_training": {"distributed_world_size": 1},
            "common": {
                "fp16_init_scale": 4,
                "fp16_scale_window": None,
                "fp16_scale_tolerance": 0.0,
                "threshold_loss_scale": None,
                "min_loss_scale": 1e-4,
                "model_parallel_size": 1,
                **common,
            },
        }
    )


def halves() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(w).half()) for w in draw([(6, 5), (5,)], seed=3)]


def test_flat_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # which fairseq asks for first
    with pytest.raises(RuntimeError, match="does not support flat params, please set --fp16-no"):
        FP16Optimizer.build_optimizer(mixed_precision(), halves())


@pytest.mark.parametrize("common", [{"fp16_no_flatten_grads": True}, {"bf16": True}])
def test_fp16_with_an_fp32_copy_of_each_parameter(common: dict[str, bool]) -> None:
    params = halves()
    reference = [nn.Parameter(p.detach().float()) for p in params]
    plain = Lars(reference, lr=0.5, weight_decay=0.1)
    optimizer = FP16Optimizer.build_optimizer(mixed_precision(**common), params)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.backward(sum((0.25 * p).sum() for p in params))
        optimizer.clip_grad_norm(0.0)
        optimizer.step()
        for p in reference:
            p.grad = torch.full_like(p, 0.25)
        plain.step()
    for half, copy, wanted in zip(params, optimizer.fp32_params, reference, strict=True):
        torch.testing.assert_close(copy.detach(), wanted.detach())
        assert torch.equal(half, copy.half())


def test_memory_efficient_fp16_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^LARS: torch.float16 parameters would round .* allowed: "
    ):
        MemoryEfficientFP16Optimizer.build_optimizer(mixed_precision(), halves())


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_zero_sharding_keeps_each_parameter_a_tensor(process_group: Any) -> None:
    """--zero-sharding os."""

    def stepped(sharded: bool) -> list[Tensor]:
        params = [nn.Parameter(torch.tensor(w)) for w in draw(WEIGHTS + VECTORS, seed=4)]
        optimizer = build_optimizer(mixed_precision().optimizer, params)
        if sharded:
            shard_(optimizer, process_group)
        for step in range(3):
            for p, g in zip(params, draw(WEIGHTS + VECTORS, seed=step), strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
        return [p.detach() for p in params]

    for sharded, whole in zip(stepped(True), stepped(False), strict=True):
        assert torch.equal(sharded, whole)


@pytest.mark.parametrize("scale_vectors", [False, True])
def test_a_learning_rate_of_its_own_for_gamma(scale_vectors: bool) -> None:
    """`LearningRateScale` against parameter groups with a rate each, under a changing rate."""

    def trained(scale: float | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(SigmaLinear(5, 6), SigmaLinear(6, 3))
        gammas = [norm.gamma for norm, _ in sigma_norms(model)]
        own = {id(p) for p in gammas}
        groups = [gammas, [p for p in model.parameters() if id(p) not in own]]
        options = {"weight_decay": 0.1, "scale_vectors": scale_vectors, "decay_vectors": True}
        optimizer = Lars([{"params": group} for group in groups], lr=0.1, **options)
        scaling = LearningRateScale(model, gammas, scale) if scale else None
        for step in range(5):
            for group, factor in zip(optimizer.param_groups, (1 if scale else 2.5, 1), strict=True):
                group["lr"] = factor * 0.5 / (step + 1)
            for p, g in zip(
                model.parameters(), draw([p.shape for p in model.parameters()], step), strict=True
            ):
                p.grad = torch.tensor(g, dtype=p.dtype)
            optimizer.step()
        if scaling:
            scaling.check_applied()
        return [p.detach() for p in model.parameters()]

    for got, wanted in zip(trained(2.5), trained(None), strict=True):
        torch.testing.assert_close(got, wanted)


NARROW = (
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--share-all-embeddings"),
    *("--encoder-attention-heads", "4", "--decoder-attention-heads", "4"),
    *("--encoder-layers", "2", "--decoder-layers", "1", "--encoder-layerdrop", "0.5"),
)


def train(
    fairseq: Callable[..., Any], data_bin: Path, folder: Path, *args: str, check: bool = True
) -> Any:
    """A training with LARS; returns its last checkpoint, or with `check=False` how it ended."""
    ended = fairseq(
        "train",
        *(str(data_bin), "--user-dir", USER_DIR, "--cpu", "--save-dir", str(folder), "--seed", "7"),
        *("--arch", "transformer_reparam_postln_6l", *NARROW, "--gamma-lr-scale", "2"),
        *("--optimizer", "lars", "--lr", "0.5", "--lr-scheduler", "inverse_sqrt"),
        *("--warmup-updates", "2", "--clip-norm", "1", "--batch-size", "16", "--num-workers", "0"),
        *("--disable-validation", *args),
        check=check,
    )
    return torch.load(folder / "checkpoint_last.pt", weights_only=True) if check else ended


def test_a_resumed_training_is_the_same_digit_for_digit(
    fairseq: Callable[..., Any], data_bin: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "whole", tmp_path / "rest"
    saved = ("--save-interval-updates", "3", "--max-update", "6")
    whole = train(fairseq, data_bin, first, *saved)
    restored = ("--restore-file", str(first / "checkpoint_1_3.pt"), "--max-update", "6")
    parts = train(fairseq, data_bin, second, *restored)
    assert parts["optimizer_history"][-1]["num_updates"] == 6
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    states = [run["last_optimizer_state"]["state"] for run in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][key][name]), (key, name)


def test_a_bad_option_ends_the_command_with_one_line(
    fairseq: Callable[..., Any], data_bin: Path, tmp_path: Path
) -> None:
    ended = train(fairseq, data_bin, tmp_path, "--trust-coefficient", "-1", check=False)
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert last == "ValueError: LARS: trust_coefficient -1.0 is not above 0"
