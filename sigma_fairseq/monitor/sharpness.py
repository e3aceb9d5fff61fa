"""Sharpness: the largest eigenvalues of the Hessian of a training loss (Appendix B).

They are found by Lanczos iteration on Hessian-vector products, so that no Hessian is ever formed,
and held against the stability threshold of the optimizer: where the loss is quadratic, an
eigenvalue above it makes the iterates grow without bound (Cohen et al., 2021, 2022).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sigma_fairseq.checkpoints.safe_mode import read_checkpoint

#: Lanczos gives up after so many restarts, each of about 20 Hessian-vector products.
MAX_RESTARTS = 100

#: Optimizer → threshold times learning rate, as a function of its momentum (Adam's is β1).
_STABILITY: dict[str, Callable[[float], float]] = {
    "adam": lambda momentum: (2 + 2 * momentum) / (1 - momentum),
    "nag": lambda momentum: (2 + 2 * momentum) / (1 + 2 * momentum),
    "sgd": lambda momentum: 2 + 2 * momentum,
}

#: Recomputed activations cannot be differentiated twice.
_NO_RECOMPUTATION = {"checkpoint_activations": False, "offload_activations": False}


class SharpnessError(Exception):
    """The sharpness asked for cannot be had; the message says why, in one line."""


def largest_eigenvalues(
    losses: Sequence[Callable[[], Tensor]],
    parameters: Sequence[Tensor],
    count: int,
    tolerance: float,
    seed: int,
    on_product: Callable[[], None] = lambda: None,
) -> NDArray[Any]:
    """The algebraically largest eigenvalues of the Hessian of a loss.

    Args:
        losses: the terms that the loss is the sum of, for instance one a micro-batch. Each is a
            function that computes its term, a scalar, from the parameters, the same at every call.
            Only one term's graph is in memory at a time.
        parameters: leaves of one floating-point dtype and device, each listed once; the Hessian is
            over all of them. About 20 vectors of their joint size are kept in main memory.
        count: how many eigenvalues.
        tolerance: relative accuracy of each.
        seed: of the vector that Lanczos starts from.
        on_product: called after each Hessian-vector product.

    Returns:
        The eigenvalues, largest first, shape (count,), in the parameters' precision.

    Raises:
        SharpnessError: `count` is not from 1 to the number of parameters less one, a product is
            not finite, or Lanczos does not converge in `MAX_RESTARTS` restarts.
    """
    size = sum(parameter.numel() for parameter in parameters)
    if not 1 <= count < size:
        raise SharpnessError(
            f"{count} eigenvalues are not from 1 to {size - 1:,}, as {size:,} parameters allow"
        )
    start = torch.from_numpy(np.random.default_rng(seed).standard_normal(size))
    start = start.to(parameters[0].dtype)

    def product(vector: NDArray[Any]) -> NDArray[Any]:
        direction = torch.from_numpy(vector).to(parameters[0])
        result = hessian_vector_product(losses, parameters, direction)
        if not result.isfinite().all():
            raise SharpnessError("the loss or its derivatives are not finite at these parameters")
        on_product()
        return result.cpu().numpy()

    hessian = LinearOperator((size, size), matvec=product, dtype=start.numpy().dtype)
    try:
        found = eigsh(
            hessian,
            k=count,
            which="LA",
            v0=start.numpy(),
            tol=tolerance,
            maxiter=MAX_RESTARTS,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise SharpnessError(
            f"Lanczos found {len(error.eigenvalues)} of {count} eigenvalues to a tolerance of "
            f"{tolerance:g} in {MAX_RESTARTS} restarts: ask for fewer or a larger tolerance"
        ) from error
    return np.sort(found)[::-1]


def hessian_vector_product(
    losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """H·v for the Hessian H of the sum of `losses`, by differentiating ⟨gradient, v⟩.

    Args:
        losses, parameters: as for `largest_eigenvalues`.
        vector: v, shape (number of parameters,), in the order of `parameters`.

    Returns:
        H·v, of the shape of v.
    """
    product = torch.zeros_like(vector)
    for loss in losses:
        gradient = torch.autograd.grad(
            loss(), parameters, create_graph=True, materialize_grads=True
        )
        slope = torch.dot(_flat(gradient), vector)
        product += _flat(torch.autograd.grad(slope, parameters, materialize_grads=True))
    return product


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """What of an optimizer decides how sharp a minimum it bears.

    Attributes:
        name: fairseq's name for it.
        learning_rate: the one in force.
        momentum: β1 for the Adam family, 0 without momentum.
    """

    name: str
    learning_rate: float
    momentum: float

    def threshold(self) -> float | None:
        """The eigenvalue above which a quadratic loss diverges; None if there is no formula for it.

        Adam: (2 + 2β1) / ((1 − β1)·lr), 38/lr at β1 = 0.9 (Eq. 25, which leaves Adam's division by
        √v out; Cohen et al., 2022, hold it against the Hessian so divided). SGD with momentum m:
        (2 + 2m)/lr; Nesterov's: (2 + 2m) / ((1 + 2m)·lr) (Cohen et al., 2021). Infinite where the
        rate has decayed to 0.
        """
        if self.name not in _STABILITY:
            return None
        bound = _STABILITY[self.name](self.momentum)
        return bound / self.learning_rate if self.learning_rate else math.inf


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """The sharpness of a checkpoint.

    Attributes:
        eigenvalues: of the Hessian of `loss`, largest first.
        optimizer: of the checkpoint; None if its state was not saved.
        criterion: fairseq's name of the loss.
        loss: what the optimizer minimises, in nats: the criterion's sum over the sample, divided
            by its sample size (target tokens, or sentences under `--sentence-avg`).
        sentences, tokens: size of the sample, in sentences and target tokens.
        parameters: number of trained parameters, tied ones counted once.
    """

    eigenvalues: list[float]
    optimizer: OptimizerSettings | None
    criterion: str
    loss: float
    sentences: int
    tokens: int
    parameters: int

    def table(self) -> str:
        """The eigenvalues beside the threshold, and what they are of."""
        threshold = self.optimizer.threshold() if self.optimizer else None
        lines = ["rank   eigenvalue" + ("  share of the threshold" if threshold else "")]
        for rank, eigenvalue in enumerate(self.eigenvalues, start=1):
            share = f"{eigenvalue / threshold:24.2%}" if threshold else ""
            lines.append(f"{rank:4d} {eigenvalue:12.5g}{share}")
        return "\n".join(
            [
                *lines,
                "",
                f"threshold   {self._threshold_line(threshold)}",
                f"loss        {self.loss:.4f} nats, {self.criterion}, dropout off",
                f"sample      {self.sentences:,} sentences, {self.tokens:,} target tokens",
                f"parameters  {self.parameters:,}",
            ]
        )

    def _threshold_line(self, threshold: float | None) -> str:
        if self.optimizer is None:
            return "unknown: the checkpoint holds no optimizer state"
        name = self.optimizer.name
        if threshold is None:
            return f"unknown for {name}; known for {', '.join(_STABILITY)}"
        momentum = "β1" if name == "adam" else "momentum"
        return (
            f"{threshold:.5g}: {name}, learning rate {self.optimizer.learning_rate:g}, "
            f"{momentum} {self.optimizer.momentum:g}"
        )


def measure_sharpness(
    checkpoint: str,
    data: str,
    subset: str,
    tokens: int,
    max_tokens: int,
    count: int,
    tolerance: float,
    device: torch.device,
    on_product: Callable[[], None] = lambda: None,
) -> Sharpness:
    """The sharpness of a fairseq checkpoint, in fp32 and without dropout.

    σReparam's u and v are constants, as in training, while σ depends on W.

    Args:
        checkpoint: a file that `fairseq-train` saved.
        data: the data folder for the checkpoint's task, with the dictionary it was trained with.
        subset: the part of the data to take the sample from.
        tokens: size of the sample: as many of the first sentences as it takes to have so many, by
            fairseq's count for `--max-tokens`. Sentences too long for the model are left out.
        max_tokens: the most tokens in one forward pass, padding included; a longer sentence has one
            of its own.
        count, tolerance, on_product: as for `largest_eigenvalues`.
        device: where to compute.

    Raises:
        SharpnessError: the checkpoint or the subset cannot be read, the data do not fit the
            checkpoint, the model or the loss cannot be differentiated twice on this device, or what
            `largest_eigenvalues` raises it for.
    """
    state, model, cfg, task = _load(checkpoint, data)
    max_positions = utils.resolve_max_positions(task.max_positions(), model.max_positions())
    samples = _first_samples(task, cfg, subset, tokens, max_tokens, max_positions)
    if device.type == "cuda":
        samples = [utils.move_to_cuda(sample, device) for sample in samples]
    model = model.to(device).eval()
    criterion = task.build_criterion(cfg.criterion).to(device).eval()
    with torch.no_grad():
        sums = [criterion(model, sample)[:2] for sample in samples]
    sample_size = sum(int(size) for _, size in sums)

    def mean_loss(sample: dict[str, Any]) -> Tensor:
        total: Tensor = criterion(model, sample)[0]
        return total / sample_size

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = [functools.partial(mean_loss, sample) for sample in samples]
    try:
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            eigenvalues = largest_eigenvalues(
                losses, parameters, count, tolerance, seed=0, on_product=on_product
            )
    except RuntimeError as error:
        raise SharpnessError(f"no Hessian-vector product: {_first_line(error)}") from error
    return Sharpness(
        eigenvalues=eigenvalues.tolist(),
        optimizer=_optimizer_settings(state, cfg),
        criterion=_name(cfg, "criterion"),
        loss=sum(float(total) for total, _ in sums) / sample_size,
        sentences=sum(sample["nsentences"] for sample in samples),
        tokens=sum(sample["ntokens"] for sample in samples),
        parameters=sum(parameter.numel() for parameter in parameters),
    )


def _load(checkpoint: str, data: str) -> tuple[dict[str, Any], Any, Any, Any]:
    """(state, model, config, task) of a checkpoint, the task reading `data`."""
    overrides = {"data": data, **_NO_RECOMPUTATION}
    try:
        state = read_checkpoint(checkpoint, overrides)
    except ValueError as error:
        raise SharpnessError(str(error)) from error
    try:
        (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
            [checkpoint], state=state
        )
    except Exception as error:
        reason = str(error).rpartition("\n")[2].strip()
        raise SharpnessError(f"{checkpoint} does not load with {data}: {reason}") from error
    return state, model, cfg, task


def _first_samples(
    task: Any, cfg: Any, subset: str, tokens: int, max_tokens: int, max_positions: Any
) -> list[dict[str, Any]]:
    """The first sentences of a subset, collated into micro-batches."""
    try:
        task.load_dataset(subset, combine=False, epoch=1, task_cfg=cfg.task)
    except (OSError, ValueError) as error:
        raise SharpnessError(f"no subset {subset!r} to read: {_first_line(error)}") from error
    dataset = task.dataset(subset)
    indices = task.filter_indices_by_size(
        np.arange(len(dataset)), dataset, max_positions, ignore_invalid_inputs=True
    )
    chosen: list[int] = []
    taken = longest = 0
    for index in indices:
        if taken >= tokens:
            break
        size = dataset.num_tokens(index)
        chosen.append(index)
        taken, longest = taken + size, max(longest, size)
    if not chosen:
        raise SharpnessError(f"the subset {subset!r} has no sentence that the model can read")
    batches = dataset.batch_by_size(np.array(chosen), max_tokens=max(max_tokens, longest))
    return [dataset.collater([dataset[index] for index in batch]) for batch in batches]


def _optimizer_settings(state: dict[str, Any], cfg: Any) -> OptimizerSettings | None:
    if not state.get("last_optimizer_state"):
        return None
    group = state["last_optimizer_state"]["param_groups"][0]
    momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
    return OptimizerSettings(_name(cfg, "optimizer"), group["lr"], momentum)


def _name(cfg: Any, registry: str) -> str:
    """fairseq's name for a component, whose options are a namespace if it has no dataclass."""
    name: str = getattr(cfg[registry], "_name", None) or getattr(cfg[registry], registry)
    return name


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
