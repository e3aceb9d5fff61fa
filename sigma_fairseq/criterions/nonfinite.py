"""What a training does about a loss, or gradients, that are not finite."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import Variable

#: So many micro-batches in a row end a training that leaves them out: its weights are broken.
MOST_IN_A_ROW = 10


class NonFinite:
    """Looks at each micro-batch after its backward pass, and names what is not finite.

    Without a loss scale, fairseq ends a training whose gradients are not finite; here a micro-batch
    that makes them so can be left out instead, and with it what its worker has gathered for the
    update before it. With one (`--fp16`, `--amp`) fairseq leaves such updates out and lowers the
    scale, without end under `--amp`, and says nothing of a loss that no scale would mend: here such
    a loss ends the training, or is left to it.

    Args:
        model: what is trained.
        skip: whether training goes on.
        scaled: whether there is a loss scale.
        on_skip: called with what was not finite, when a micro-batch is left out.
        on_end: called with it before a training ends.

    Attributes:
        count: micro-batches that were not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        skip: bool,
        scaled: bool,
        on_skip: Callable[[str], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._parameters = list(model.named_parameters())
        self._skip = skip
        self._scaled = scaled
        self._on_skip = on_skip
        self._on_end = on_end
        self._in_a_row = 0
        self.count = 0
        self._last: tuple[Tensor, list[Tensor | None]] | None = None

    def forget(self) -> None:
        """Call before a forward pass: gradients that are kept would take memory of their own."""
        self._last = None

    def watch(self, loss: Tensor) -> None:
        """Looks when the backward pass of `loss` has ended.

        Raises:
            FloatingPointError: from the backward pass, when training is to end.
        """
        # As DistributedDataParallel does it, whose last act is to come first.
        engine = Variable._execution_engine
        look = partial(self._look, loss.detach())
        loss.register_hook(lambda _: engine.queue_callback(lambda: engine.queue_callback(look)))

    def end(self, error: FloatingPointError) -> None:
        """Ends a training of which fairseq has found that gradients are not finite.

        Raises:
            FloatingPointError: which says of what.
        """
        what = "" if self._last is None else self._nonfinite(*self._last)
        self._on_end(what or str(error))
        raise FloatingPointError(what or str(error))

    def _look(self, loss: Tensor) -> None:
        gradients = [parameter.grad for _, parameter in self._parameters]
        self._last = loss, gradients
        if not (self._scaled or self._skip):
            return  # fairseq looks
        if loss.isfinite().all() and (self._scaled or _all_finite(gradients)):
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        what = self._nonfinite(loss, gradients)
        if not self._skip or self._in_a_row == MOST_IN_A_ROW:
            self._on_end(what)
            raise FloatingPointError(what)
        # With a loss scale, on a GPU, fairseq leaves the update out and would miss its gradients.
        if not (self._scaled and loss.is_cuda):
            for _, parameter in self._parameters:
                parameter.grad = None
        self._on_skip(what)

    def _nonfinite(self, loss: Tensor, gradients: list[Tensor | None]) -> str:
        """What is not finite, and of which parameter first; nothing where all is."""
        found = [
            name
            for (name, _), gradient in zip(self._parameters, gradients, strict=True)
            if gradient is not None and not gradient.isfinite().all()
        ]
        weights = [name for name, weight in self._parameters if not weight.isfinite().all()]
        what = ["the loss"] * (not loss.isfinite().all()) + ["gradients"] * bool(found)
        if not what:
            return ""
        # The last parameter of a model is the first to get its gradient.
        first = f", first that of {found[-1]}" if found else ""
        weight = f"; nor is the weight {weights[0]}" if weights else ""
        return f"{' and '.join(what)} are not finite{first}{weight}"


def _all_finite(gradients: list[Tensor | None]) -> bool:
    norms = torch._foreach_norm([gradient for gradient in gradients if gradient is not None])
    return bool(torch.stack(norms).isfinite().all())
