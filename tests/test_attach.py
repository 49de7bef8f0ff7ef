"""The same method through `fit` and inside a loop of one's own: equal masks, and equal bits."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pruninglab as lab
from pruninglab import methods as m

N, SIZE, EPOCHS = 40, 8, 3
SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=SOURCE)
Y = (X[:, 0] + X[:, 3] > 0).long()
DATA = lab.wrap(TensorDataset(X, Y), TensorDataset(X[:16], Y[:16]), val=0.2)
STEPS = len(DATA.train) // SIZE


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def fitted(*methods: lab.Method) -> tuple[lab.Run, list[tuple[Tensor, Tensor]]]:
    """A run of `fit`, and the batches that it saw."""
    seen: list[tuple[Tensor, Tensor]] = []
    how: dict[str, Any] = {"epochs": EPOCHS, "batch_size": SIZE, "optimizer": "sgd", "lr": 0.05, "device": "cpu"}
    how["collapse"] = "allow"
    run = lab.fit(net(), DATA, *methods, lr_schedule="constant", progress=lambda r: seen.append((r.x, r.y)), **how)
    return run, seen


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, *methods: lab.Method, **options: Any) -> Any:
    known = {"data": DATA, "batch_size": SIZE, "steps_per_epoch": STEPS, "collapse": "allow", **options}
    return lab.attach(model, optimizer, *methods, steps=EPOCHS * STEPS, **known)


def loop(pruner: Any, model: nn.Module, batches: list[tuple[Tensor, Tensor]], forward: Any = None) -> None:
    for x, y in batches:
        logits = (forward or model)(x)
        (F.cross_entropy(logits, y) + pruner.loss(x, y, logits)).backward()
        pruner.optimizer.step()
        pruner.optimizer.zero_grad()
        pruner.step()


CASES = {
    "gradual": m.Gradual(lab.Cubic(0.8)),
    "snip": m.OneShot(0.7, "snip"),
    "admm": m.ADMM(0.7),
    "rigl": m.RigL(0.6, every_steps=2),
    "penalty": m.RelevanceL2(strength=1e-3),
    "sensitivity": m.Sensitivity(strength=1e-3),
    "noise": m.TargetedDropout(0.6),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_of_ones_own_gives_the_bits_of_fit(name: str):
    expected, batches = fitted(CASES[name])
    model = net()
    pruner = attached(model, optimizer_of(model), CASES[name])
    loop(pruner, model, batches, pruner)
    run = pruner.finish()
    assert run.masks.fingerprint == expected.masks.fingerprint
    for one, other in zip(run.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [entry["val_loss"] for entry in run.history] == [entry["val_loss"] for entry in expected.history]
    assert [entry["loss"] for entry in run.history] == pytest.approx([entry["loss"] for entry in expected.history])
    assert (run.status, run.test, run.cost["steps"]) == (expected.status, expected.test, expected.cost["steps"])


def test_without_data_it_prunes_and_the_record_says_what_it_knows():
    expected, batches = fitted(CASES["gradual"])
    model = net()
    pruner = attached(model, optimizer_of(model), CASES["gradual"], data=None)
    loop(pruner, model, batches)
    run = pruner.finish()
    assert run.masks.fingerprint == expected.masks.fingerprint
    assert (run.result.accuracy["test"], run.result.config["data"]["name"]) == ({}, "your own loop")
    assert "loop" in run.result.origin
    assert "Gradual" in repr(run)


def test_what_is_pruned_is_zero_after_every_step_and_a_skipped_step_counts_as_none():
    model = net()
    pruner = attached(model, optimizer_of(model), m.OneShot(0.5), data=None)
    for i in range(4):
        F.cross_entropy(model(X), Y).backward()
        if i % 2:
            pruner.optimizer.step()
            pruner.optimizer.zero_grad()
        pruner.step()
        assert not any((w * ~pruner.masks[n]).any() for n, w in lab.prunable(model).items())
    assert pruner.run.step == 2


def test_a_loop_goes_on_from_its_state():
    expected, batches = fitted(CASES["rigl"])
    half = len(batches) // 2
    model = net()
    optimizer = optimizer_of(model)
    pruner = attached(model, optimizer, CASES["rigl"])
    loop(pruner, model, batches[:half])
    kept = [copy.deepcopy(thing.state_dict()) for thing in (model, optimizer, pruner)]
    other = net()
    again = optimizer_of(other)
    late = attached(other, again, CASES["rigl"])
    other.load_state_dict(kept[0])
    again.load_state_dict(kept[1])
    late.load_state_dict(kept[2])
    loop(late, other, batches[half:])
    run = late.finish()
    assert run.masks.fingerprint == expected.masks.fingerprint
    for one, expect in zip(run.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, expect)


def test_what_a_loop_leaves_out_is_told():
    model = net()
    pruner = attached(model, optimizer_of(model), m.TargetedDropout(0.6))
    with pytest.raises(lab.RunError, match=r"changes the forward pass; call logits = pruner\(x\)"):
        pruner.loss(X, Y, model(X))
    pruner = attached(net(), optimizer_of(model), m.Sensitivity(1e-3))
    with pytest.raises(lab.RunError, match=r"Sensitivity looks at this batch; call pruner\.loss"):
        pruner.loss()
    with pytest.raises(lab.ConfigError, match="needs data and got none"):
        attached(net(), optimizer_of(model), m.OneShot(0.5, "snip"), data=None)
    with pytest.raises(lab.ConfigError, match="steps=0; expected"):
        lab.attach(net(), optimizer_of(model), steps=0)


@pytest.mark.filterwarnings("ignore")
def test_lightning_gives_the_masks_and_bits_of_fit(tmp_path: Any):
    lightning = pytest.importorskip("lightning.pytorch")
    from pruninglab.train.with_lightning import PruningCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return optimizer_of(self)

    expected, batches = fitted(CASES["gradual"])
    order = [batches[i * STEPS : (i + 1) * STEPS] for i in range(EPOCHS)]
    callback, module = PruningCallback(CASES["gradual"], collapse="allow"), Module()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    how = {"accelerator": "cpu", "reload_dataloaders_every_n_epochs": 1, "default_root_dir": tmp_path, **quiet}
    trainer = lightning.Trainer(max_epochs=EPOCHS, callbacks=[callback], **how)

    class Batches(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(order[self.trainer.current_epoch], batch_size=None)

    trainer.fit(module, datamodule=Batches())
    assert callback.run is not None
    assert [m.kept for m in (callback.run.masks, expected.masks)] == [expected.masks.kept] * 2
    for one, other in zip(module.net.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_hugging_face_gives_the_masks_and_bits_of_fit_and_resumes(tmp_path: Any):
    transformers = pytest.importorskip("transformers")
    from pruninglab.train.with_trainer import PruningCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    expected, batches = fitted(CASES["gradual"])
    items = [{"x": x, "labels": y} for xs, ys in batches for x, y in zip(xs, ys, strict=True)]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(items)

    def trained(folder: str, resume: str | None = None) -> Any:
        callback, model = PruningCallback(CASES["gradual"], steps_per_epoch=STEPS, collapse="allow"), Model()
        how = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "report_to": [], "disable_tqdm": True}
        how |= {"per_device_train_batch_size": SIZE, "num_train_epochs": 1, "save_steps": 5, "use_cpu": True}
        arguments = transformers.TrainingArguments(str(tmp_path / folder), save_strategy="steps", **how)
        sgd = optimizer_of(model)
        InOrder(model, arguments, train_dataset=items, callbacks=[callback], optimizers=(sgd, None)).train(resume)
        return callback.run

    for run in (trained("one"), trained("one", str(tmp_path / "one" / "checkpoint-5"))):
        assert run.masks.kept == expected.masks.kept
        for one, other in zip(run.model.parameters(), expected.model.parameters(), strict=True):
            assert torch.equal(one, other)
