"""Text without a download, the small language model, and what they are measured by."""

import importlib.util
import math
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import pruninglab as lab
from pruninglab.data import code
from pruninglab.data.assembling import whole_groups
from pruninglab.models import continued
from pruninglab.train import metrics

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "batch_size": 20}


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("code", train=300, test=60, size=32)


@pytest.fixture(scope="module")
def model(data):
    return lab.build("gpt", data, width=16, layers=2, heads=4, kv_heads=2)


def test_a_window_says_at_every_place_which_byte_follows(data: Any):
    x, y = data.test.x, data.test.y
    assert x.shape == y.shape == (60, 32)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert (data.classes, data.shape) == (256, (32,))
    text = b"".join(content for _, content in code.sources())
    assert all(bytes([*window.tolist(), int(last)]) in text for window, last in zip(x[:20], y[:20, -1], strict=True))


def test_windows_by_hand():
    both, files = code.windows([b"abcdefg", b"ab", b"", b"vwxyz"], 3)
    assert [bytes(window.tolist()) for window in both] == [b"abcd", b"defg", b"vwxy"]
    assert files.tolist() == [0, 0, 3]
    assert code.windows([b"ab"], 3)[0].shape == (0, 4)


def test_a_file_is_in_one_split_alone():
    _, _, files = code.read_code(32, 3000, 100)
    held = whole_groups(files, 300, 7)
    mine = torch.zeros(len(files), dtype=torch.bool).index_fill(0, held, True)
    assert not set(files[mine].tolist()) & set(files[~mine].tolist())
    assert 300 <= len(held) < 600
    names = [name for name, _ in code.sources()]
    assert 0.05 < sum(map(code.is_tested, names)) / len(names) < 0.15
    val: Any = [lab.load("code", train=300, test=60, size=32, seed=seed).val for seed in (0, 0, 1)]
    assert torch.equal(val[0].x, val[1].x)
    assert not torch.equal(val[0].x, val[2].x)


def test_one_group_stays_in_training():
    assert whole_groups(torch.tensor([0, 0, 1, 1]), 4, 0).tolist() in ([0, 1], [2, 3])


def test_the_record_says_which_python_wrote_the_text(data, model):
    again = lab.load("code", train=300, test=60, size=32)
    assert again.fingerprint == data.fingerprint
    result = lab.fit(model, data, epochs=0, **QUIET).result
    assert platform.python_version() in result.config["data"]["source"]
    assert "source" not in lab.fit(*small_digits(), epochs=0, progress=False).result.config["data"]


def small_digits() -> Any:
    digits = lab.load("digits", train=60, test=20, size=8)
    return lab.build("lenet300", digits), digits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 10**9}, "code has"),
        ({"augment": "flip"}, "augmentations are for images"),
        ({"val": 2}, "above 0 and below 1"),
        ({"size": 10**8}, "from 1 to 4096"),
    ],
)
def test_what_text_cannot_give_is_refused(options, message):
    with pytest.raises(lab.ConfigError, match=message):
        lab.load("code", **options)


def test_no_place_sees_what_comes_after_it(data, model):
    x = data.test.x[:4]
    changed = x.clone()
    changed[:, 20:] = 7
    with torch.no_grad():
        a, b = model.eval()(x), model(changed)
    assert torch.equal(a[:, :, :20], b[:, :, :20])
    assert not torch.allclose(a[:, :, 20:], b[:, :, 20:])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_attention_is_attention_with_repeated_keys_and_values(kv_heads):
    torch.manual_seed(0)
    layer = lab.layers.CausalAttention(8, 4, kv_heads).double()
    x = torch.randn(3, 5, 8).double()
    q, k, v = layer.qkv(x).split([8, 2 * kv_heads, 2 * kv_heads], -1)
    out = []
    for head in range(4):
        own = head * kv_heads // 4
        query, key, value = q[..., 2 * head : 2 * head + 2], *(t[..., 2 * own : 2 * own + 2] for t in (k, v))
        scores = query @ key.transpose(1, 2) / math.sqrt(2) + torch.full((5, 5), -math.inf).triu(1)
        out.append(scores.softmax(-1) @ value)
    assert torch.allclose(layer(x), layer.out_proj(torch.cat(out, -1)))


def test_weights_by_hand(data):
    weights = {n: w.numel() for n, w in lab.prunable(lab.build("gpt", data, width=8, layers=1, heads=4)).items()}
    assert weights == {
        "token.weight": 256 * 8,
        "place.weight": 32 * 8,
        "blocks.0.attention.qkv.weight": 3 * 64,
        "blocks.0.attention.out_proj.weight": 64,
        "blocks.0.fc1.weight": 256,
        "blocks.0.fc2.weight": 256,
        "fc.weight": 256 * 8,
    }
    tied = lab.build("gpt", data, width=8, layers=1, heads=4, tied=True)
    assert list(lab.prunable(tied)) == [name for name in weights if name != "fc.weight"]
    assert 1e6 < sum(p.numel() for p in lab.build("gpt", lab.load("code", train=20, test=5)).parameters()) < 3e6


@pytest.mark.parametrize("options", [{"heads": 3}, {"heads": 4, "kv_heads": 3}, {"kv_heads": 0}, {"layers": 0}])
def test_what_does_not_divide_is_refused(data, options):
    with pytest.raises(lab.ConfigError, match=r"kv_heads|layers=0"):
        lab.build("gpt", data, **{"width": 16, **options})


def test_images_are_refused():
    with pytest.raises(lab.ConfigError, match="reads sequences of tokens"):
        lab.build("gpt", lab.load("digits", train=60, test=20))


def test_bits_by_hand():
    """Two texts of two bytes: where one in four is guessed, a byte costs two bits of its eight."""
    logits = torch.zeros(2, 256, 2)
    logits[:, 4:] = -1e9
    y = torch.tensor([[0, 1], [2, 3]])
    assert metrics.compression(logits, y).tolist() == pytest.approx([0.75, 0.75])
    loss = float(F.cross_entropy(logits, y))
    assert metrics.bits(loss) == pytest.approx(2)
    assert metrics.perplexity(loss) == pytest.approx(4)


def test_it_learns_and_says_its_bits(data, model):
    run = lab.fit(model, data, epochs=4, lr=1e-2, metric=metrics.compression, **QUIET)
    row = run.result.row()
    assert run.result.accuracy["metric"] == "compression"
    assert run.test == pytest.approx(1 - metrics.bits(row["test_loss"]) / 8, abs=1e-6)
    assert 2 < metrics.bits(row["test_loss"]) < 6


def test_it_goes_on_from_a_prompt(model):
    text = continued(model, "def ", length=12, context=32)
    assert text == continued(model, "def ", length=12, context=32)
    assert text != continued(model, "def ", length=12, context=32, seed=1)
    assert text.startswith("def ")
    likeliest = continued(model, "é", length=3, temperature=0, context=32)
    assert likeliest == continued(model, "é", length=3, temperature=0, context=32, seed=5)


@pytest.fixture(scope="module")
def study() -> Any:
    """The command behind the survey's Figure 3, as a module."""
    path = Path(lab.__file__).parents[1] / "notebooks" / "results" / "language" / "study.py"
    spec: Any = importlib.util.spec_from_file_location("language_study", path)
    module = sys.modules["language_study"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_asks_the_whole_question_at_each_budget(study):
    for budget in study.BUDGETS.values():
        asked = list(study.cells(budget))
        assert len({cell.name for cell in asked}) == len(asked) == 78
        trained = {(cell.method, cell.sparsity) for cell in asked if cell.group == "trained"}
        methods = {*study.trained(0.5), "scratch"}
        assert trained == {("dense", 0.0)} | {(m, s) for m in methods for s in (0.5, 0.8, 0.9, 0.95, 0.98)}
    assert study.BUDGETS["quick"].epochs * 3 == study.BUDGETS["full"].epochs
    assert len({budget.records for budget in study.BUDGETS.values()}) == 3


@pytest.mark.slow
def test_the_study_says_its_cost_and_goes_on_where_it_was_stopped(study, tmp_path, monkeypatch, capsys):
    budgets = {"small": replace(study.BUDGETS["small"].within(tmp_path), sparsities=(0.5,))}
    words = ["0", "--budget", "small"]
    study.main([*words, "--estimate"], budgets)
    assert "18 of 18 records are left, 12 of them trainings of 12 steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())

    calls: list[int] = []

    def stop(run: lab.Run) -> None:
        calls.append(run.step)
        if len(calls) == 40:
            run.interrupt()

    monkeypatch.setitem(study.COMMON, "progress", stop)
    study.main(words, budgets)
    assert "the same command goes on" in capsys.readouterr().out
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("records/**/*.json")}
    assert 2 < len(first) < 18
    broken = [path for path in first if lab.Result.read(path).status == "interrupted"]
    assert len(broken) == 1

    monkeypatch.setitem(study.COMMON, "progress", False)
    study.main(words, budgets)
    assert f"{18 - len(first) + 1} of 18 records are left" in capsys.readouterr().out
    records = lab.results.load(tmp_path / "records")
    assert len(records) == 18
    assert set(records["status"]) <= {"done", "target_missed"}
    assert set(records["asked"]) == {0.0, 0.5}
    assert set(records.loc[records["group"] == "trained", "steps"]) == {12}
    changed = {path for path, at in first.items() if path.stat().st_mtime_ns != at}
    assert changed == {*broken, tmp_path / "records" / "start" / "dense-seed-0.json"}
    study.main(words, budgets)
    assert "0 of 18 records are left" in capsys.readouterr().out
