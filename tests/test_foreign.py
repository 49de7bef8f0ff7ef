"""Networks of other libraries, built tiny: pruned rightly, or refused in words before they train."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch import Tensor, nn

import pruninglab as lab
from pruninglab.methods.cuts.gradual import Gradual

pytestmark = pytest.mark.filterwarnings("ignore")
N = 24
SOURCE = torch.Generator().manual_seed(0)
IMAGES = torch.randn(N, 3, 32, 32, generator=SOURCE)
SOUNDS = torch.randn(N, 1, 64, generator=SOURCE)
TOKENS = torch.randint(1, 40, (N, 8), generator=SOURCE)
KIND = torch.arange(N) % 2
TAGS = TOKENS % 3
MASK = torch.ones_like(TOKENS)


class Tagger(nn.Module):
    def __init__(self, kind: Any):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(40, 16), kind(16, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(tokens))[0]).transpose(1, 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embed(tokens)).transpose(1, 2)


def bert(kind: str) -> nn.Module:
    hf: Any = pytest.importorskip("transformers")
    size = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "gpt2":
        config = hf.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
        )
        return hf.GPT2LMHeadModel(config)
    if kind == "vit":
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
        return hf.ViTForImageClassification(hf.ViTConfig(image_size=32, patch_size=8, num_labels=2, **size))
    size |= {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 8}
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, bos_token_id=0, eos_token_id=0, **size))
    if kind == "bert tags":
        return hf.BertForTokenClassification(hf.BertConfig(num_labels=3, **size))
    if kind == "distilbert":
        config = hf.DistilBertConfig(
            vocab_size=40, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=8
        )
        return hf.DistilBertForSequenceClassification(config)
    return hf.BertForSequenceClassification(hf.BertConfig(num_labels=2, **size))


def vision(name: str, **options: Any) -> nn.Module:
    return getattr(pytest.importorskip("torchvision.models"), name)(num_classes=2, **options)


def timm(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=2, **options)


def sound(norm: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Module:
    parts = [norm(nn.Conv1d(1, 8, 5, padding=2)), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))


def frozen() -> nn.Module:
    model = sound()
    next(model.children()).requires_grad_(False)
    return model


def half() -> nn.Module:
    return sound().bfloat16()


WEIGHT_NORM = torch.nn.utils.parametrizations.weight_norm
Inputs = dict[str, Any]
WORDS: Inputs = {"input_ids": TOKENS, "attention_mask": MASK}
FOREIGN: dict[str, tuple[Callable[[], Any], Any, Tensor | None, float]] = {
    "bert": (lambda: bert("bert"), WORDS, KIND, 0.95),
    "bert tags": (lambda: bert("bert tags"), WORDS, TAGS, 0.95),
    "distilbert": (lambda: bert("distilbert"), WORDS, KIND, 0.9),
    "gpt2": (lambda: bert("gpt2"), {"input_ids": TOKENS, "labels": TOKENS}, None, 0.95),
    "llama": (lambda: bert("llama"), {"input_ids": TOKENS, "labels": TOKENS}, None, 0.95),
    "vit": (lambda: bert("vit"), IMAGES, KIND, 0.95),
    "lstm tagger": (lambda: Tagger(nn.LSTM), TOKENS, TAGS, 0.95),
    "gru tagger": (lambda: Tagger(nn.GRU), TOKENS, TAGS, 0.95),
    "tied": (Tied, TOKENS, TOKENS, 1.0),
    "sound": (sound, SOUNDS, KIND, 0.8),
    "weight norm": (lambda: sound(WEIGHT_NORM), SOUNDS, KIND, 0.8),
    "partly frozen": (frozen, SOUNDS, KIND, 0.6),
    "half precision": (half, SOUNDS.bfloat16(), KIND, 0.8),
    "compiled": (lambda: torch.compile(sound(), backend="eager"), SOUNDS, KIND, 0.8),
    "resnet18": (lambda: vision("resnet18"), IMAGES, KIND, 0.95),
    "mobilenet": (lambda: vision("mobilenet_v3_small"), IMAGES, KIND, 0.9),
    "squeezenet": (lambda: vision("squeezenet1_1"), IMAGES, KIND, 0.9),
    "shufflenet": (lambda: vision("shufflenet_v2_x0_5"), IMAGES, KIND, 0.9),
    "timm resnet": (lambda: timm("resnet10t"), IMAGES, KIND, 0.95),
    "timm vit": (lambda: timm("vit_tiny_patch16_224", img_size=32, depth=1), IMAGES, KIND, 0.9),
}


SEVERAL = "takes several inputs .* cannot be followed which of its channels go together"
WHOLE = "no channel of this model can be removed"
KEPT = {
    **dict.fromkeys(("bert", "bert tags", "distilbert", "gpt2", "llama"), SEVERAL),
    **dict.fromkeys(("lstm tagger", "gru tagger", "tied"), WHOLE),
    "weight norm": "has parametrized weights; make them plain first",
    "shufflenet": "its code rearranges them, or computes what torch-pruning does not know",
}
"""Networks whose channels stay, and why. All others shrink."""
CORE = ("bert", "lstm tagger")
QUICK = [pytest.param(name, marks=() if name == "sound" else pytest.mark.slow) for name in FOREIGN]
CASES = [pytest.param(name, marks=() if name in CORE else pytest.mark.slow) for name in FOREIGN]


def built(name: str) -> tuple[Any, lab.Data]:
    make, x, y, _ = FOREIGN[name]
    torch.manual_seed(0)
    if y is not None:
        return make(), lab.wrap((x, y), (x, y), val=0.25)
    items = [{k: v[i] for k, v in x.items()} for i in range(N)]
    return make(), lab.wrap(items, items[:8], labels=None, val=items[:4])


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_network_is_pruned_saved_and_resumed(name: str, tmp_path: Any):
    (model, data), share = built(name), FOREIGN[name][3]
    loss = nn.functional.cross_entropy if FOREIGN[name][2] is not None else lab.train.returned_loss
    how: dict[str, Any] = {"epochs": 1, "batch_size": 6, "device": "cpu", "progress": False, "loss": loss}
    how["collapse"] = "allow"
    run = lab.fit(model, data, Gradual(lab.Cubic(0.6)), **how)
    assert run.status == "done"
    assert run.sparsity == pytest.approx(0.6, abs=0.01)
    assert run.result.scope["weights"] / run.result.scope["parameters"] >= share
    for at, weight in lab.prunable(run.model).items():
        assert not (weight * ~run.masks[at]).any()

    if hasattr(model, "save_pretrained"):
        folder = lab.train.publish(run, tmp_path / "published")
        read = type(model).from_pretrained(folder)
        for one, other in zip(read.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(one, other)

    def stop(run: lab.Run) -> None:
        if run.step == 1:
            run.interrupt()

    how["checkpoint"] = tmp_path / "run"
    stopping: dict[str, Any] = {**how, "progress": stop}
    lab.fit(model, data, Gradual(lab.Cubic(0.6)), **stopping)
    again = lab.fit(model, data, Gradual(lab.Cubic(0.6)), **how)
    for one, other in zip(again.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(one, other)
    _, masks = lab.prune(model, 0.5, lab.criteria.SNIP(loss=loss), data=data, collapse="allow")
    assert masks.sparsity == pytest.approx(0.5, abs=0.01)


def smaller(model: nn.Module, data: lab.Data) -> tuple[nn.Module, lab.structured.Shrunk]:
    pruned, masks = lab.structured.prune(model, data, 0.3)
    return pruned.eval(), lab.structured.shrink(pruned, data, masks)


@pytest.mark.parametrize("name", QUICK)
def test_a_foreign_network_shrinks_or_says_why_not(name: str):
    """A smaller network of the same class with the logits of the pruned one; or the reason why there is none."""
    model, data = built(name)
    before = [p.clone() for p in model.parameters()]
    if why := KEPT.get(name):
        with pytest.raises(lab.ConfigError, match=why):
            smaller(model, data)
    else:
        pruned, small = smaller(model, data)
        assert type(small.model) is type(model)
        assert small.removed > 0
        assert small.parameters < sum(map(torch.numel, before))
        x = FOREIGN[name][1]
        with torch.no_grad():
            one, other = (getattr(answer, "logits", answer) for answer in (pruned(x), small.model.eval()(x)))
        assert (one - other).abs().max() <= 1e-4 * (one.amax(0) - one.amin(0)).max()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.slow
def test_the_cell_of_notebook_18_fine_tunes_bert_on_dicts_word_for_word(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """At most ten lines, no class of the user's; sequences of other lengths end in padding."""
    transformers = pytest.importorskip("transformers")
    cells = nbformat.read(Path(lab.__file__).parents[1] / "notebooks" / "18_your_own.ipynb", 4).cells
    (code,) = (
        part for c in cells for part in re.findall(r"```python\n(.*?)```", c.source, re.DOTALL) if "Bert" in part
    )
    assert len(code.splitlines()) <= 10
    assert "class " not in code
    source = torch.Generator().manual_seed(0)
    rows = []
    for i in range(240):
        long = 3 + i % 6
        ids = torch.randint(3, 100, (8,), generator=source)
        ids[0], ids[long:] = 1 + i % 2, 0
        rows.append({"input_ids": ids, "attention_mask": (torch.arange(8) < long).long(), "label": i % 2})
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    held: dict[str, Any] = {"rows": rows}
    exec(code, held)
    assert held["dense"].test > 0.9
    assert held["pruned"].status == "done"
    assert held["pruned"].sparsity == pytest.approx(0.5, abs=0.01)
    assert held["pruned"].test > 0.9
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "pruned-bert")
    for one, other in zip(again.parameters(), held["pruned"].model.parameters(), strict=True):
        assert torch.equal(one, other)
