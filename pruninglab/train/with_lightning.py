"""Pruning as a callback of Lightning. Importing this file needs lightning."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..errors import ConfigError
from .attach import Attached, Pruner, attach
from .method import Method


class PruningCallback(Callback):
    """`Trainer(callbacks=[PruningCallback(lab.methods.Gradual(lab.Cubic(0.9)))])` prunes while Lightning trains.

    `options` are those of `lab.attach`; the numbers of steps come from the trainer. `run` is there when it is over.
    Checkpoints of the trainer hold masks and methods. Methods that look at a batch or change the forward pass need a
    loop of your own: `lab.attach`.
    """

    def __init__(self, *methods: Method, **options: Any):
        self.methods, self.options = methods, options
        self.pruner: Pruner | None = None
        self.run: Attached | None = None
        self.stored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ConfigError(f"this module has {len(trainer.optimizers)} optimizers; expected one that trains it all.")
        steps = int(trainer.estimated_stepping_batches)
        epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        known: dict[str, Any] = {"steps": steps, "steps_per_epoch": epoch} | self.options
        self.pruner = attach(pl_module, trainer.optimizers[0], *self.methods, **known)
        self.pruner.drive_by_hand()
        if self.stored:
            self.pruner.load_state_dict(self.stored)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """All gradients of this step are there: what methods add to the loss adds its own to them."""
        if self.pruner:
            self.pruner.add_gradients()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.pruner:
            self.pruner.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.pruner:
            self.run = self.pruner.finish()

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict() if self.pruner else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stored = state_dict
