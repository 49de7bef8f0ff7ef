"""Pruning as a callback of the Hugging Face Trainer. Importing this file needs transformers."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import ConfigError
from ..storage import files
from .attach import Attached, Pruner, attach
from .method import Method

FILE = "pruninglab.state"
"""What the callback adds to each checkpoint of the Trainer."""


class PruningCallback(TrainerCallback):
    """`Trainer(…, callbacks=[PruningCallback(lab.methods.Gradual(lab.Cubic(0.9)))])` prunes while the Trainer trains.

    `options` are those of `lab.attach`; the numbers of steps come from the Trainer. `run` is there when it is over.
    Checkpoints of the Trainer get a file with masks and methods, from which it resumes. Methods that look at a batch or
    change the forward pass need a loop of your own: `lab.attach`.
    """

    def __init__(self, *methods: Method, **options: Any):
        self.methods, self.options = methods, options
        self.pruner: Pruner | None = None
        self.run: Attached | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it
            optimizer = optimizer.optimizer
        epoch = max(1, round(state.max_steps / max(state.num_train_epochs or 1, 1)))
        known: dict[str, Any] = {"steps": state.max_steps, "steps_per_epoch": epoch} | self.options
        self.pruner = attach(kwargs["model"], optimizer, *self.methods, **known)
        self.pruner.drive_by_hand()
        if state.global_step:
            path = _folder(args, state) / FILE
            if not path.exists():
                raise ConfigError(f"{path} is missing; expected masks of step {state.global_step} to resume from.")
            self.pruner.load_state_dict(files.load_state(path))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner:
            self.pruner.add_gradients()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner:
            self.pruner.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.pruner:
            files.save_state(_folder(args, state) / FILE, self.pruner.state_dict())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner:
            self.run = self.pruner.finish()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
