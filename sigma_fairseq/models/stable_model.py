"""What the models of every family share: power iteration, checkpoints, fast generation."""

import logging
from pathlib import Path
from typing import Any

from fairseq.distributed.utils import is_master
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from sigma_fairseq.layers.attention import Attention
from sigma_fairseq.models.last_checkpoint import LAST, mend_last_checkpoint
from sigma_fairseq.models.recorded_options import check_recorded, record
from sigma_fairseq.optim.learning_rate_scale import LearningRateScale
from sigma_fairseq.reparam import (
    PowerIteration,
    find_degenerate,
    fuse,
    restore_vectors,
    sigma_stacks,
)

logger = logging.getLogger(__name__)

#: Updates from one look at every γ and σ to the next.
CHECK_INTERVAL = 100


class StableModel(BaseFairseqModel):
    """A fairseq model whose linears may be reparameterized; mixed in before fairseq's class.

    Attributes:
        options_version: a buffer, see `models.recorded_options`.
    """

    options_version: Tensor
    _gamma_learning_rate: LearningRateScale | None = None
    _power_iteration: PowerIteration | None = None
    _iterated_update: int | None = None
    _has_loaded = False
    announced_update: int = 0

    def set_options(self, cfg: Any) -> None:
        """Takes over what of a family's flat config is the same in all; the last act of building.

        Raises:
            ValueError: `--save-dir` has no whole checkpoint to go on from.
        """
        self.register_buffer("options_version", record(cfg))
        self._said: set[str] = set()
        if cfg.gamma_lr_scale != 1:
            gammas = [norm.gamma for norm, _ in sigma_stacks(self)]
            self._gamma_learning_rate = LearningRateScale(self, gammas, cfg.gamma_lr_scale)
        # The model is built right before fairseq looks for a checkpoint.
        training = cfg._get_root()
        checkpoint = training.get("checkpoint")
        if (
            checkpoint
            and checkpoint.restore_file == LAST
            and is_master(training.distributed_training)
        ):
            mend_last_checkpoint(Path(checkpoint.save_dir))

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
            if num_updates % CHECK_INTERVAL == 0:
                self._say_what_is_degenerate()

    def _say_what_is_degenerate(self) -> None:
        for line in find_degenerate(self):
            weight = line.partition(" is ")[0]
            if weight not in self._said:
                self._said.add(weight)
                logger.warning("update %d: %s", self.announced_update, line)

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
        """As fairseq's; u and v are then those of the state, due for their next iteration.

        Raises:
            ValueError: the state is of a model with other options.
        """
        if "options_version" in state_dict:
            check_recorded(state_dict["options_version"], self.options_version)
        state_dict["options_version"] = self.options_version
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self._has_loaded = True
        # fairseq announces the update it resumes from before it loads: that did not count.
        self._iterated_update = None
        # And it is one ahead of the last that the state was trained at, whose temperature holds.
        super().set_num_updates(max(self.announced_update - 1, 0))
        return result

    def train(self, mode: bool = True) -> "StableModel":
        """As any module's; evaluation of an averaged checkpoint finds its singular vectors."""
        # Not as it is loaded: a moving average of a model is at every update.
        if not mode and self._has_loaded:
            self._has_loaded = False
            restore_vectors(self)
        super().train(mode)
        return self

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """Fuses Ŵ into plain layers: generation costs what it costs without σReparam."""
        super().make_generation_fast_(**kwargs)
        fuse(self)
        self._power_iteration = None
        for module in self.modules():
            if isinstance(module, Attention):
                for pack in module.packs:
                    pack.freeze()
