"""The LightningModule: a plain model, an objective and a recipe."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from trilith.model import Transformer
from trilith.quant import BitLinear
from trilith.training.batches import IGNORED, Batch
from trilith.training.recipe import Recipe, build_optimizer
from trilith.training.sharding import gathered, sharded_copy, whole_blocks


class Loss(NamedTuple):
    """What is minimized, and the cross-entropy part of it that curves show."""

    total: Tensor
    nats: Tensor


Objective = Callable[[Transformer, Any], Loss]


def cross_entropy(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Mean loss in nats over the counted targets."""
    return F.cross_entropy(
        logits_BTV.float().flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORED
    )


def next_token_objective(model: Transformer, batch: Batch) -> Loss:
    """Cross-entropy of the next token."""
    nats = cross_entropy(model(batch.inputs_BT), batch)
    return Loss(nats, nats.detach())


class LanguageModule(lightning.LightningModule):
    """Trains `model`. Learning rate and decay are set from the step, so nothing else keeps them.

    `lr_factor` is the stability callback's hand on the learning rate. `loss_nats` and `grad_norm`
    are those of the last optimizer step, over all its micro-batches on all devices: every process
    has the same. Where weights are sharded `model` becomes a sharded copy of the given one.
    """

    def __init__(
        self, model: Transformer, *, objective: Objective, recipe: Recipe, num_steps: int
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.recipe = recipe
        self.num_steps = num_steps
        self.lr_factor = 1.0
        self.micro_losses: list[Tensor] = []
        self.loss_nats = torch.tensor(torch.nan)
        self.grad_norm = torch.tensor(torch.nan)
        self.learning_rate = 0.0

    def configure_model(self) -> None:
        # Only the sharding strategy makes a mesh; Lightning calls this for each fit and validate.
        if self.device_mesh is not None:
            self.model = sharded_copy(self.model, self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.objective(self.model, batch)
        self.micro_losses.append(loss.nats)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        nats = cross_entropy(self.model(batch.inputs_BT), batch)
        self.log("validation/loss_nats", nats, batch_size=len(batch.inputs_BT), sync_dist=True)

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self.recipe)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        self.learning_rate = self.lr_factor * self.recipe.learning_rate(step, self.num_steps)
        self._set_dense(self.recipe.is_dense(step, self.num_steps))
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
            if group["decays"]:
                group["weight_decay"] = self.recipe.decay(step, self.num_steps)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        parameters = list(self.model.parameters())
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.grad_norm = gathered(nn.utils.get_total_norm(grads))
        nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_norm, self.grad_norm)
        loss_nats = torch.stack(self.micro_losses).mean()
        self.loss_nats = self.trainer.strategy.reduce(loss_nats, reduce_op="mean")
        self.micro_losses.clear()

    def _set_dense(self, is_dense: bool) -> None:
        layers = [layer for layer in self.model.modules() if isinstance(layer, BitLinear)]
        if all(layer.is_dense == is_dense for layer in layers):
            return
        for block in whole_blocks(self.model):
            for layer in block.modules():
                if isinstance(layer, BitLinear):
                    layer.is_dense = is_dense
                    # The weights have moved since the scales were fitted.
                    layer.refit()


def starts_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """True at the first micro-batch of an optimizer step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """True at the last micro-batch of an optimizer step, once the step is done."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
