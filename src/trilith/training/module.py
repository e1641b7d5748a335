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
from trilith.training.pacing import Pace
from trilith.training.recipe import Recipe, build_optimizer
from trilith.training.sharding import gathered, refit_scales, sharded_copy


class Loss(NamedTuple):
    """What is minimized, and the parts of it that curves show: cross-entropy and divergence."""

    total: Tensor
    nats: Tensor
    kl_nats: Tensor | None = None


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
    the position in the recipe: steps that a rollback has undone do not count. `loss_nats`,
    `kl_nats` (None where nothing is distilled) and `grad_norm` are those of the last optimizer
    step, over all its micro-batches on all devices: every process has the same. Where weights are
    sharded `model` becomes a sharded copy of the given one. With a `pace` layers move to the grid
    one group after another. `seed` draws the noise on latent weights.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        objective: Objective,
        recipe: Recipe,
        num_steps: int,
        pace: Pace | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.recipe = recipe
        self.num_steps = num_steps
        self.pace = pace
        self.seed = seed
        self.lr_factor = 1.0
        self.num_lost_steps = 0
        self.micro_losses: list[Tensor] = []
        self.micro_kls: list[Tensor] = []
        self.loss_nats = torch.tensor(torch.nan)
        self.kl_nats: Tensor | None = None
        self.grad_norm = torch.tensor(torch.nan)
        self.learning_rate = 0.0

    @property
    def recipe_step(self) -> int:
        """Position in the recipe: optimizer steps whose effect is still in the weights."""
        return self.global_step - self.num_lost_steps

    @property
    def is_on_grid(self) -> bool:
        """True if the last optimizer step saw the whole model on its grid."""
        last = max(0, self.recipe_step - 1)
        is_complete = self.pace is None or self.pace.is_complete(last)
        return is_complete and self.recipe.quantized_share(last, self.num_steps) == 1

    @property
    def moves_layers(self) -> bool:
        """True if layers move to another grid at the start of this optimizer step."""
        return self.pace is not None and self.pace.moves_at(self.recipe_step)

    def log_now(self, values: dict[str, float]) -> None:
        """Log values of this step; Lightning's own `log` waits for the end of an epoch."""
        if self.trainer.logger is not None:
            self.trainer.logger.log_metrics(values, step=self.global_step)

    def configure_model(self) -> None:
        # Only the sharding strategy makes a mesh; Lightning calls this for each fit and validate.
        if self.device_mesh is not None:
            self.model = sharded_copy(self.model, self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.objective(self.model, batch)
        self.micro_losses.append(loss.nats)
        if loss.kl_nats is not None:
            self.micro_kls.append(loss.kl_nats)
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
                self.model,
                step=step,
                num_steps=self.num_steps,
                recipe=self.recipe,
                pace=self.pace,
                seed=self.seed,
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
        self.loss_nats = self._mean_of(self.micro_losses)
        self.kl_nats = self._mean_of(self.micro_kls) if self.micro_kls else None

    def _mean_of(self, parts: list[Tensor]) -> Tensor:
        """Mean over micro-batches and devices; the parts are cleared."""
        mean = torch.stack(parts).mean()
        parts.clear()
        return self.trainer.strategy.reduce(mean, reduce_op="mean")


def start_quantized_step(
    model: Transformer,
    *,
    step: int,
    num_steps: int,
    recipe: Recipe,
    pace: Pace | None = None,
    seed: int = 0,
) -> None:
    """Put all layers of a grid where recipe and pace have them at this optimizer step.

    When a dense phase ends, scales are fitted: the weights have moved since they were made.
    """
    share = recipe.quantized_share(step, num_steps)
    leaves_dense = share > 0 and step > 0 and recipe.quantized_share(step - 1, num_steps) == 0
    if leaves_dense:
        refit_scales(model)
    layers = [layer for layer in model.modules() if isinstance(layer, BitLinear)]
    for layer in layers:
        layer.quantized_share = share
    if pace is not None:
        pace.refit_moving(model, step=step)
        pace.place(model, step=step)
    generator = None
    if recipe.latent_noise and layers:
        # Drawn from the step, so that a resumed run draws the same.
        generator = torch.Generator(layers[0].weight.device)
        generator.manual_seed((seed << 32) + step)
    for layer in layers:
        noise = None
        if generator is not None:
            noise = torch.empty_like(layer.weight)
            noise.normal_(0, recipe.latent_noise, generator=generator)
        # A sharded weight is whole only during the forward pass, which then quantizes.
        layer.start_step(hold=not isinstance(layer.weight, DTensor), noise=noise)


def starts_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """True at the first micro-batch of an optimizer step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """True at the last micro-batch of an optimizer step, once the step is done."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
