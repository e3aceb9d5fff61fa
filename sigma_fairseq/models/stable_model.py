"""What the models of every family share: power iteration, γ's learning rate, fast generation."""

from typing import Any

from fairseq.models import BaseFairseqModel
from torch import nn

from sigma_fairseq.layers.attention import Attention
from sigma_fairseq.optim.learning_rate_scale import LearningRateScale
from sigma_fairseq.reparam import PowerIteration, fuse, sigma_stacks


class StableModel(BaseFairseqModel):
    """A fairseq model whose linears may be reparameterized; mixed in before fairseq's class."""

    _gamma_learning_rate: LearningRateScale | None = None
    _power_iteration: PowerIteration | None = None
    _iterated_update: int | None = None
    announced_update: int = 0

    def scale_gamma_learning_rate(self, scale: float) -> None:
        """Multiplies the learning rate of every γ by `scale`, whatever the optimizer."""
        if scale != 1:
            gammas = [norm.gamma for norm, _ in sigma_stacks(self)]
            self._gamma_learning_rate = LearningRateScale(self, gammas, scale)

    def set_num_updates(self, num_updates: int) -> None:
        """fairseq announces update `num_updates`, before each of its micro-batches.

        Raises:
            ValueError: the weights are flattened (`--ddp-backend fully_sharded`).
        """
        super().set_num_updates(num_updates)
        self.announced_update = num_updates
        if self.training and num_updates != self._iterated_update:
            if self._gamma_learning_rate is not None and self._iterated_update is not None:
                self._gamma_learning_rate.check_applied()
            if self._power_iteration is None:
                self._check_whole()
                self._power_iteration = PowerIteration(self)
            self._power_iteration.step()
            self._iterated_update = num_updates

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # To another device or dtype, by which weights are grouped.
        self._power_iteration = None
        return super()._apply(*args, **kwargs)

    def _check_whole(self) -> None:
        for norm, _ in sigma_stacks(self):
            if not isinstance(norm.gamma, nn.Parameter):
                raise ValueError(
                    "--ddp-backend fully_sharded leaves --reparam sigma no whole weights between "
                    "updates; allowed: pytorch_ddp, legacy_ddp; examples/fsdp.py shards by "
                    "PyTorch's fully_shard"
                )

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's; u and v are then those of the state, due for their next iteration."""
        result = super().load_state_dict(state_dict, *args, **kwargs)
        # fairseq announces the update it resumes from before it loads: that did not count.
        self._iterated_update = None
        # And it is one ahead of the last that the state was trained at, whose temperature holds.
        super().set_num_updates(max(self.announced_update - 1, 0))
        return result

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """Fuses Ŵ into plain layers: generation costs what it costs without σReparam."""
        super().make_generation_fast_(**kwargs)
        fuse(self)
        self._power_iteration = None
        for module in self.modules():
            if isinstance(module, Attention):
                for pack in module.packs:
                    pack.freeze()
