"""Reads a model in training from outside and records what it reads; changes nothing in it."""

import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq.distributed import utils as distributed
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sigma_fairseq.monitor.attention_reader import AttentionReader, AttentionSums
from sigma_fairseq.monitor.parts import attentions, matrices, token_embeddings
from sigma_fairseq.monitor.records import record_dtype
from sigma_fairseq.monitor.spectral_norms import SpectralNorms, effective_scales, sigma_errors
from sigma_fairseq.optim.optimizer_tensors import Slice, locate


class MicroBatch(NamedTuple):
    """What one forward pass of an update left.

    Attributes:
        loss: as it was given to fairseq, which sets it to 0 where a worker had no batch left and
            repeats one.
        loss_sum: nats, summed over the sample.
        sample_size: target tokens, or sentences, of the sample.
        sums: None in an update that is not sampled.
    """

    loss: Tensor
    loss_sum: Tensor
    sample_size: Tensor
    sums: AttentionSums | None


class Monitor:
    """Takes a sample of a training every so many updates.

    A sample is a record of these fields, all of the weights that an update began with (A attentions
    of at most H heads, M matrices, E embeddings; NaN where there is nothing to say):

    - `update`: updates made before; `seconds`: Unix time; `learning_rate`
    - `loss`: of training, bits a target token, over the updates since the sample before
    - `entropy` (A, H): mean over all valid queries of the update, nats; `entropy_min` (A, H): the
      least of a query that sees several keys; `entropy_bound` (A, H): mean of Theorem 3.1's bound
      over the queries; `entropy_max` (A,): that of uniform attention
    - `key_query_norm` (A, H): ‖W_Kᵀ W_Q‖₂ of a head
    - `spectral_norm` (M,): ‖Ŵ‖₂; `gamma` (M,); `sigma_error` (M,): (σ - uᵀWv)/σ
    - `gradient_norm` (M,): of W, as the optimizer gets it, so after clipping; `update_ratio` (M,):
      ‖change of W in the update‖/‖W‖
    - `embedding_variability` (E,): standard deviation over the vocabulary, mean over dimensions

    Args:
        model: fairseq's transformer, or one of ours; not the wrapper of a distributed training.
        interval: updates from one sample to the next.
        sigma_error: whether to compute it, by an SVD of every matrix.
        on_sample: called with the sample's record, on every worker.

    Raises:
        ValueError: the model has no attention.
    """

    def __init__(
        self,
        model: nn.Module,
        interval: int,
        sigma_error: bool,
        on_sample: Callable[[np.ndarray], None],
    ) -> None:
        self._model = weakref.ref(model)
        self._first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        self._interval = interval
        self._sigma_error = sigma_error
        self._on_sample = on_sample
        self.attentions = list(attentions(model))
        if not self.attentions:
            raise ValueError("this model has no attention to monitor: use the plain criterion")
        self.matrices = list(matrices(model))
        self.embeddings = list(token_embeddings(model))
        self.heads = max(attention.module.num_heads for attention in self.attentions)
        self.dtype = record_dtype(
            len(self.attentions), self.heads, len(self.matrices), len(self.embeddings)
        )
        self._reader = AttentionReader(self.attentions, self.heads)
        self._spectral_norms = SpectralNorms(self.matrices, self.attentions)
        self._places: weakref.WeakKeyDictionary[Optimizer, list[tuple[int, Slice]]]
        self._places = weakref.WeakKeyDictionary()
        self._micro_batches: list[MicroBatch] = []
        self._loss = self._first.new_zeros(2, dtype=torch.float64)  # loss, sample size
        self._record: dict[str, Any] | None = None
        self._key_query: tuple[Tensor, Tensor] | None = None
        self._unfinished: set[int] = set()
        self._counted = False
        self._before: tuple[Tensor, ...] = ()
        for handle in (
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ):
            weakref.finalize(model, handle.remove)

    def names(self) -> dict[str, Any]:
        """What the entries of a record's fields belong to, in their order."""
        return {
            "attentions": [
                {"name": a.name, "kind": a.kind, "layer": a.layer, "heads": a.module.num_heads}
                for a in self.attentions
            ],
            "matrices": [
                {"name": m.name, "kind": m.kind, "stack": m.stack, "layer": m.layer}
                for m in self.matrices
            ],
            "embeddings": [name for name, _ in self.embeddings],
        }

    @contextmanager
    def forward(self, update: int) -> Iterator[Callable[[Tensor, Any, Any], None]]:
        """Around a forward pass of training.

        Args:
            update: its number, the updates made before it.

        Yields:
            What to call with the loss, its sum over the sample in nats, and the sample size.

        Raises:
            RuntimeError: updates are made without the monitor finding the model's parameters.
        """
        # fairseq has just cleared the gradients, so what came before was an update, or a try at
        # one that it gave up (an overflow in fp16).
        if self._first.grad is None:
            with torch.autocast(self._first.device.type, enabled=False):
                self._begin(update)

        def add(loss: Tensor, loss_sum: Any, sample_size: Any) -> None:
            size, total = (self._number(value) for value in (sample_size, loss_sum))
            self._micro_batches.append(MicroBatch(loss.detach().view(()), total, size, sums))

        sums = None
        if self._record is None:
            yield add
        else:
            assert self._key_query is not None
            with self._reader.reading(self._key_query) as sums:
                yield add

    def drop(self) -> None:
        """Takes no sample of an update of which a part is left out."""
        self._micro_batches.clear()
        self._record = None

    def _number(self, value: Any) -> Tensor:
        """A scalar: fairseq's criterions give numbers, scalars and tensors of one element."""
        number = torch.as_tensor(value, dtype=torch.float64, device=self._first.device)
        return number.detach().reshape(())

    @torch.no_grad()
    def _begin(self, update: int) -> None:
        if self._record is not None and self._places and not any(self._places.values()):
            raise RuntimeError(
                "the optimizer holds the model's parameters in a way that the monitors do not know;"
                " allowed: fairseq's optimizers without sharding"
            )
        self._micro_batches.clear()
        self._counted = False
        self._record = None
        if update % self._interval:
            return
        model = self._model()
        assert model is not None
        scales = effective_scales(model)
        norms = self._spectral_norms
        self._key_query = norms.key_query(scales, self.heads)
        missing = self._first.new_tensor(math.nan, dtype=torch.float32)
        gammas = [matrix.sigma_norm() for matrix in self.matrices]
        self._record = {
            "update": update,
            "seconds": time.time(),
            "key_query_norm": self._key_query[0],
            "spectral_norm": norms.weights(scales),
            "gamma": torch.stack([missing if g is None else g.gamma.float() for g in gammas]),
            "sigma_error": sigma_errors(model, self.matrices) if self._sigma_error else math.nan,
            "gradient_norm": missing.repeat(len(self.matrices)),
            "update_ratio": missing.repeat(len(self.matrices)),
            "embedding_variability": self._embedding_variability(),
        }
        self._unfinished = {
            index for index, matrix in enumerate(self.matrices) if matrix.parameter().requires_grad
        }

    def _embedding_variability(self) -> Tensor:
        tables = [embedding.weight.float() for _, embedding in self.embeddings]
        deviations = [table.std(0, correction=0).mean() for table in tables]
        return torch.stack(deviations) if deviations else self._first.new_empty(0)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        places = self._located(optimizer)
        if not places:
            return
        if not self._counted:
            self._counted = True
            for batch in self._micro_batches:
                real = batch.loss != 0
                self._loss += real * torch.stack([batch.loss_sum, batch.sample_size])
        if self._record is None:
            return
        self._record["learning_rate"] = optimizer.param_groups[0]["lr"]
        found = [(index, place.gradient()) for index, place in places]
        rows = [index for index, gradient in found if gradient is not None]
        gradients = [gradient for _, gradient in found if gradient is not None]
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            self._record["gradient_norm"][rows] = norms.float()
        self._before = torch._foreach_mul([place.value() for _, place in places], 1.0)  # clones

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        places = self._located(optimizer)
        if not places or self._record is None:
            return
        change = torch._foreach_sub([place.value() for _, place in places], self._before)
        lengths, changes = torch._foreach_norm(self._before), torch._foreach_norm(change)
        self._before = ()
        rows = [index for index, _ in places]
        ratio = torch.stack(changes).float() / torch.stack(lengths).float()
        self._record["update_ratio"][rows] = ratio
        # fairseq's composite optimizer is several, which step one after another.
        self._unfinished.difference_update(rows)
        if not self._unfinished:
            self._finish()

    def _located(self, optimizer: Optimizer) -> list[tuple[int, Slice]]:
        """The matrices' numbers, and where the optimizer holds them."""
        if optimizer not in self._places:
            model = self._model()
            assert model is not None
            places = locate(optimizer, model)
            parameters = [id(matrix.parameter()) for matrix in self.matrices]
            self._places[optimizer] = [
                (index, places[key]) for index, key in enumerate(parameters) if key in places
            ]
        return self._places[optimizer]

    def _finish(self) -> None:
        """Brings together what all workers have seen of an update, and hands out the record."""
        assert self._record is not None
        values, self._record = self._record, None
        record = np.zeros((), self.dtype)
        for field, value in (values | self._attention_figures()).items():
            record[field] = value.double().cpu().numpy() if isinstance(value, Tensor) else value
        self._on_sample(record)

    def _attention_figures(self) -> dict[str, Tensor]:
        """The loss, and what the attentions have had to say, over all workers."""
        shape = (4, len(self.attentions), self.heads)
        totals = torch.zeros(shape, dtype=torch.float64, device=self._first.device)
        least = torch.full_like(totals[0], torch.inf)
        for batch in self._micro_batches:
            if (sums := batch.sums) is not None:
                real = batch.loss != 0
                found = torch.stack([sums.count, sums.entropy, sums.bound, sums.uniform])
                totals += torch.where(real, found, 0)
                least = torch.where(real, torch.minimum(least, sums.least), least)
        self._micro_batches.clear()
        flat = torch.cat([totals.flatten(), self._loss])
        self._loss = torch.zeros_like(self._loss)
        if torch.distributed.is_initialized():
            group = distributed.get_data_parallel_group()
            distributed.all_reduce(flat, group)
            least = -distributed.all_reduce(-least, group, op="max")
        count, entropy, bound, uniform = flat[:-2].view(shape)
        loss, sample_size = flat[-2:]
        return {
            "loss": loss / sample_size / math.log(2),
            "entropy": entropy / count,
            "entropy_min": torch.where(least.isfinite(), least, torch.nan),
            "entropy_bound": bound / count,
            "entropy_max": (uniform / count).nanmean(1),
        }
