"""σReparam as a `torch.nn.utils.parametrize` parametrization: `.weight` reads Ŵ, never W."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sigma_fairseq.reparam.effective_weight import (
    at_least_fp32,
    effective_weight,
    spectral_norm_estimate,
)
from sigma_fairseq.reparam.singular_vectors import (
    exact_singular_subspace,
    leading_singular_subspace,
)

Gamma = Literal["one", "sigma"]

#: Of the length of u and v, which is 1. Vectors that turned by 5 degrees have a mean as short.
LENGTH_TOLERANCE = 1e-3


def as_matrix(weight: Tensor) -> Tensor:
    """A weight (out, in) as it is, a convolution's (out, in, width) as a matrix (out, in·width)."""
    return weight.flatten(1)


class SigmaNorm(nn.Module):
    """γ, u and v of one matrix, or of several stacked along the output dimension.

    Attributes:
        gamma: γ, a scalar `nn.Parameter`.
        u: left singular vector, a buffer of shape (rows,).
        v: right singular vector, a buffer of shape (columns,).
        subspace: singular vectors of the short side, a buffer that power iteration works in, see
            `leading_singular_subspace`.
        handed: Ŵ, where the layer has computed it with all of its others; None elsewhere.

    All of these stay in fp32 when the model is cast to a narrower dtype.
    """

    gamma: Tensor
    u: Tensor
    v: Tensor
    subspace: Tensor

    def __init__(self, stack: Sequence[Tensor], gamma: Gamma = "one") -> None:
        """Starts from given weights.

        Args:
            stack: row blocks of the matrix, each (rows, columns).
            gamma: "one" (the paper, Appendix I), or "sigma": γ = σ(W), so that Ŵ = W at the start.

        Raises:
            ValueError: the blocks differ in columns, or `gamma` is unknown.
        """
        super().__init__()
        if gamma not in ("one", "sigma"):
            raise ValueError(f"gamma: {gamma!r} is not one of 'one', 'sigma'")
        widths = {block.shape[1] for block in stack}
        if len(widths) > 1:
            raise ValueError(
                f"weights that share one σ need the same number of inputs, got {sorted(widths)}"
            )
        with torch.no_grad():
            matrix = at_least_fp32(stack[0] if len(stack) == 1 else torch.cat(list(stack)))
            if gamma == "one":
                u, v, subspace = leading_singular_subspace(matrix)
                start = torch.ones_like(u[0])
            else:
                # Power iteration would go on to a larger σ otherwise, and Ŵ away from W.
                u, v, subspace = exact_singular_subspace(matrix)
                start = spectral_norm_estimate(u, v, matrix)
        self.gamma = nn.Parameter(start)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        self.register_buffer("subspace", subspace)
        self.handed: Tensor | None = None

    def sigma(self, *stack: Tensor) -> Tensor:
        """σ ≈ uᵀWv of the given row blocks, a scalar."""
        return spectral_norm_estimate(self.u, self.v, *stack)

    def effective(self, stack: Sequence[Tensor], index: int = 0) -> Tensor:
        """Ŵ of row block `index` of `stack`, see `effective_weight`."""
        return effective_weight(self.gamma, self.u, self.v, stack, index)

    def forward(self, weight: Tensor) -> Tensor:
        """W (out, in[, width]) → Ŵ of the same shape and dtype."""
        if self.handed is not None:
            return self.handed
        return self.effective([as_matrix(weight)]).view_as(weight)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "v" in state_dict and prefix + "subspace" not in state_dict:
            # A checkpoint from when power iteration had one vector: the others start as they are.
            sides = state_dict[prefix + "u"], state_dict[prefix + "v"]
            subspace = self.subspace.clone()
            subspace[-1] = min(sides[::-1], key=len)
            state_dict[prefix + "subspace"] = subspace
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SigmaNorm":
        # `model.half()` and `.bfloat16()` arrive here: follow the device, not the narrower dtype.
        def keep_fp32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device)

        return cast("SigmaNorm", super()._apply(keep_fp32, recurse))


def original(module: nn.Module, name: str) -> Tensor:
    """The tensor W behind the parametrized `module.name`, gathered where it is sharded."""
    weight = cast(Any, module).parametrizations[name].original
    return cast(Tensor, weight.full_tensor() if _is_sharded(weight) else weight)


def _is_sharded(weight: Any) -> bool:
    # A DTensor, to import which only to ask would take a third of a second.
    return hasattr(weight, "full_tensor")


class Stack(NamedTuple):
    """Where the row blocks of a matrix are.

    Attributes:
        members: (module, name of the tensor in it) of each.
        rows: those of the tensor that are the matrix's; None for all.
    """

    members: tuple[tuple[nn.Module, str], ...]
    rows: slice | None = None

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of it only, as after `fully_shard`."""
        module, name = self.members[0]
        return _is_sharded(cast(Any, module).parametrizations[name].original)

    def read(self) -> list[Tensor]:
        """The blocks, each (rows, columns); of a sharded one, in all processes at a time."""
        matrices = [as_matrix(original(module, name)) for module, name in self.members]
        return matrices if self.rows is None else [matrix[self.rows] for matrix in matrices]


class RowBlocks(nn.ModuleList):
    """A packed matrix whose row blocks have a σ and a γ each, as in `nn.MultiheadAttention`.

    Args:
        weight: the packed matrix, (rows, columns).
        rows: the number of rows of each block; their sum is the matrix's.
        gamma: see `SigmaNorm`.
    """

    def __init__(self, weight: Tensor, rows: Sequence[int], gamma: Gamma = "one") -> None:
        super().__init__(SigmaNorm([block], gamma) for block in weight.split(list(rows)))
        self.rows = list(rows)

    def forward(self, weight: Tensor) -> Tensor:
        """W (rows, columns) → Ŵ of the same shape and dtype."""
        blocks = weight.split(self.rows)
        return torch.cat([norm(block) for norm, block in zip(self, blocks, strict=True)])


class JointMember(nn.Module):
    """One of several tensors that share one `SigmaNorm` over their stack.

    The first member owns the `SigmaNorm`, so that γ, u and v are in the state once.

    Args:
        norm: the shared `SigmaNorm`.
        members: (module, name of the tensor in it) of every member, in stacking order.
        index: which of them this one is.
    """

    def __init__(
        self, norm: SigmaNorm, members: Sequence[tuple[nn.Module, str]], index: int
    ) -> None:
        super().__init__()
        self.index = index
        # In tuples, because registering a sibling as a child would repeat it in the state.
        self.stack = Stack(tuple(members))
        self.shared = (norm,)
        self.handed: Tensor | None = None
        if index == 0:
            self.norm = norm

    def forward(self, weight: Tensor) -> Tensor:
        """W of this member → its Ŵ, of the same shape and dtype."""
        if self.handed is not None:
            return self.handed
        return self.shared[0].effective(self.stack.read(), self.index).view_as(weight)


def reparameterize(*members: tuple[nn.Module, str], gamma: Gamma = "one") -> None:
    """Puts σReparam on a tensor of a module, or on several that share one σ and one γ.

    Args:
        members: (module, name) pairs, for instance `(layer, "weight")`. Several are stacked along
            the output dimension (the paper's "represented as one matrix", Appendix E.3).
        gamma: start of γ, see `SigmaNorm`.

    Raises:
        ValueError: the members differ in the number of inputs.
    """
    norm = SigmaNorm([as_matrix(getattr(module, name)) for module, name in members], gamma)
    for index, (module, name) in enumerate(members):
        member = norm if len(members) == 1 else JointMember(norm, members, index)
        # unsafe: skips a trial run, which costs as much as a forward pass of all weights and would
        # read members that are not registered yet.
        parametrize.register_parametrization(module, name, member, unsafe=True)


def sigma_stacks(model: nn.Module) -> Iterator[tuple[SigmaNorm, Stack]]:
    """Every `SigmaNorm` in `model` with the place of its W."""
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        for name, parametrization in cast(Any, module).parametrizations.items():
            first = parametrization[0]
            if isinstance(first, SigmaNorm):
                yield first, Stack(((module, name),))
            elif isinstance(first, RowBlocks):
                ends = accumulate(first.rows)
                for norm, end, count in zip(first, ends, first.rows, strict=True):
                    yield cast(SigmaNorm, norm), Stack(((module, name),), slice(end - count, end))
            elif isinstance(first, JointMember) and first.index == 0:
                yield first.norm, first.stack


def sigma_norms(model: nn.Module) -> Iterator[tuple[SigmaNorm, list[Tensor]]]:
    """Every `SigmaNorm` in `model` with the row blocks of its W, each (rows, columns).

    Weights that are sharded are gathered, one after the other; all processes have to take part.
    """
    for norm, stack in sigma_stacks(model):
        yield norm, stack.read()


@torch.no_grad()
def restore_vectors(model: nn.Module) -> None:
    """Finds u and v of W anew where they are none, as in the average of several checkpoints.

    Singular vectors have unit length, and their mean is shorter. γ and W are left alone.

    Args:
        model: any module; costs one look at the device's values where nothing is to be found.
    """
    found = list(sigma_stacks(model))
    if not found:
        return
    lengths = torch._foreach_norm([vector for norm, _ in found for vector in (norm.u, norm.v)])
    wrong = ((torch.stack(lengths).view(-1, 2) - 1).abs() > LENGTH_TOLERANCE).any(1)
    for (norm, stack), restore in zip(found, wrong.tolist(), strict=True):
        if restore:
            matrix = at_least_fp32(torch.cat(stack.read()))
            vectors = exact_singular_subspace(matrix)
            for buffer, vector in zip((norm.u, norm.v, norm.subspace), vectors, strict=True):
                buffer.copy_(vector)
