"""The LightningModule: a plain model, an objective and a recipe."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.optim import Optimizer

from trilith.model import Transformer
from trilith.quant import BitLinear
from trilith.training.batches import IGNORED, Batch
from trilith.training.recipe import Recipe, build_optimizer
from trilith.training.sharding import gathered, refit_scales, sharded_copy


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


def z_penalty(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Mean squared log of the softmax's denominator over the counted targets."""
    log_z_BT = logits_BTV.float().logsumexp(dim=-1)
    return log_z_BT[batch.targets_BT != IGNORED].square().mean()


def next_token_objective(model: Transformer, batch: Batch, *, z_loss: float = 0.0) -> Loss:
    """Cross-entropy of the next token, and `z_loss` times the z-penalty."""
    logits_BTV = model(batch.inputs_BT)
    nats = cross_entropy(logits_BTV, batch)
    total = nats + z_loss * z_penalty(logits_BTV, batch) if z_loss else nats
    return Loss(total, nats.detach())


class LanguageModule(lightning.LightningModule):
    """Trains `model`. Learning rate and decay are set from the step, so nothing else keeps them.

    `lr_factor` is the stability callback's hand on the learning rate, `num_lost_steps` its hand on
    the position in the recipe: steps that a rollback has undone do not count. `loss_nats` and
    `grad_norm` are those of the last optimizer step, over all its micro-batches on all devices:
    every process has the same. Where weights are sharded `model` becomes a sharded copy of the
    given one.
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
        self.num_lost_steps = 0
        self.micro_losses: list[Tensor] = []
        self.loss_nats = torch.tensor(torch.nan)
        self.grad_norm = torch.tensor(torch.nan)
        self.learning_rate = 0.0

    @property
    def recipe_step(self) -> int:
        """Position in the recipe: optimizer steps whose effect is still in the weights."""
        return self.global_step - self.num_lost_steps

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
        if not starts_step(self.trainer, batch_idx):
            return
        step = self.recipe_step
        self.learning_rate = self.lr_factor * self.recipe.learning_rate(step, self.num_steps)
        # What a step holds of a weight is in the dtype of its products.
        with self.trainer.precision_plugin.forward_context():
            start_quantized_step(
                self.model, step=step, num_steps=self.num_steps, recipe=self.recipe
            )
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


def start_quantized_step(model: Transformer, *, step: int, num_steps: int, recipe: Recipe) -> None:
    """Put all layers of a grid where the recipe has them at this optimizer step.

    When a dense phase ends, scales are fitted: the weights have moved since they were made.
    """
    share = recipe.quantized_share(step, num_steps)
    leaves_dense = share > 0 and step > 0 and recipe.quantized_share(step - 1, num_steps) == 0
    if leaves_dense:
        refit_scales(model)
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            layer.quantized_share = share
            # A sharded weight is whole only during the forward pass, which then quantizes.
            layer.start_step(hold=not isinstance(layer.weight, DTensor))


def starts_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """True at the first micro-batch of an optimizer step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """True at the last micro-batch of an optimizer step, once the step is done."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
