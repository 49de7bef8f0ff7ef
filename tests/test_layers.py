"""What is read off a network: which weights are in scope, what a forward pass costs, kinds of layers."""

import itertools
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.flop_counter import FlopCounterMode

import pruninglab as lab
from pruninglab import layers
from pruninglab.layers import evaluating


class Called(nn.Module):
    """Layers and what calls them."""

    def __init__(self, call: Any, **held: nn.Module):
        super().__init__()
        self.call = call
        for name, module in held.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def in_turn(self: Any, x: Tensor) -> Tensor:
    for layer in self.layers:
        x = layer(x)
    return x


def flops(model: nn.Module, x: Tensor) -> layers.Flops:
    with torch.no_grad():
        return layers.count(model.eval(), x)


def test_a_container_that_is_not_called_counts_once():
    inner = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
    model = Called(lambda self, x: self.fc(self.body(x)), body=Called(in_turn, layers=inner), fc=nn.Linear(64, 4))
    assert flops(model, torch.zeros(1, 64)).dense == 2 * (3 * 64 * 64 + 64 * 4)
    flat = Called(lambda self, x: in_turn(self, x), layers=inner)
    assert flops(flat, torch.zeros(1, 64)).dense == 2 * 3 * 64 * 64


def test_a_module_that_is_called_past_its_owner_counts_once():
    """The owner is called, and so is what it holds, but not from inside of it."""
    owner = nn.Sequential(nn.Linear(4, 4))
    model = Called(lambda self, x: self.owner[0](self.owner(x)), owner=owner)
    counted = flops(model, torch.zeros(1, 4))
    assert counted.weights == {"owner.0.weight": 2 * 2 * 16}
    assert counted.called == ["", "owner", "owner.0"]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("two_ways", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_recurrent_layers_multiply_each_weight_at_each_step(kind, gates, two_ways, depth):
    rnn = kind(5, 7, depth, batch_first=True, bidirectional=two_ways)
    counted = flops(Called(lambda self, x: self.rnn(x)[0], rnn=rnn), torch.zeros(1, 11, 5))
    sizes = {name: w.numel() for name, w in rnn.named_parameters() if w.ndim > 1}
    assert sum(n for name, n in sizes.items() if name == "weight_ih_l0") == gates * 7 * 5
    assert counted.weights == {f"rnn.{name}": 2 * 11 * n for name, n in sizes.items()}
    assert counted.other == 0
    assert counted.not_counted == []


def test_other_layers_by_hand():
    bilinear = Called(lambda self, x: self.bilinear(x[:, :4], x[:, 4:]), bilinear=nn.Bilinear(4, 5, 6))
    assert flops(bilinear, torch.zeros(1, 9)).dense == 2 * 4 * 5 * 6
    grouped = nn.Conv2d(4, 8, 3, groups=4, padding=1)
    assert flops(nn.Sequential(grouped), torch.zeros(1, 4, 6, 6)).dense == 2 * 36 * 8 * 9
    wider = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
    assert flops(nn.Sequential(wider), torch.zeros(1, 4, 5, 5)).dense == 2 * 25 * 4 * 3 * 9
    assert flops(nn.Sequential(nn.Flatten(0), nn.Linear(4, 3)), torch.zeros(1, 4)).dense == 2 * 12
    tokens = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    assert flops(tokens, torch.tensor([[1, 2, 3]])).weights == {"2.weight": 2 * 24}
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    assert flops(nn.Sequential(linear), torch.zeros(1, 4)).weights == {"0.weight": 2 * 20}


@pytest.mark.parametrize("grad", [False, True])
def test_fused_attention_counts_as_its_parts(grad):
    """Without gradients torch takes a layer in one operation that shows no products."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.set_grad_enabled(grad):
        counted = layers.count(layer, torch.ones(1, 5, 8))
    assert sum(counted.weights.values()) == 2 * 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    assert counted.other == 2 * 2 * 5 * 5 * 8  # queries with keys, then with values


def test_products_of_weights_alone_count_and_those_that_norm_them_do_not():
    low = Called(lambda self, x: x @ (self.a.weight @ self.b.weight), a=nn.Linear(2, 4), b=nn.Linear(3, 2))
    assert flops(low, torch.ones(1, 4)).dense == 2 * 4 * 2 * 3 + 2 * 4 * 3
    norm = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)))
    assert flops(norm, torch.ones(1, 3)).weights == {"0.weight": 2 * 12}
    vector = Called(lambda self, x: self.fc.weight.mv(x[0]), fc=nn.Linear(4, 3))
    assert flops(vector, torch.ones(1, 4)).weights == {"fc.weight": 2 * 12}


def test_products_with_pruned_weights_are_left_out_and_those_of_activations_are_not():
    counted = layers.Flops({"a": 8.0, "b": 4.0}, other=3.0)
    masks = {"a": torch.tensor([True, False, False, False]), "elsewhere": torch.zeros(2, dtype=torch.bool)}
    assert (counted.dense, counted.sparse(masks), counted.sparse({})) == (15.0, 9.0, 15.0)


def test_in_inference_mode_operations_that_come_whole_are_counted_by_their_parts():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with torch.inference_mode():
        inside = layers.count(net, torch.ones(1, 2, 4, 4))
    assert inside == flops(net, torch.ones(1, 2, 4, 4))
    assert inside.weights == {"0.weight": 2 * 4 * 4 * 2 * 9, "3.weight": 2 * 16 * 3}


def test_what_moves_or_scales_is_no_product():
    call = lambda self, x: self.norm(self.words(x) + self.places.weight) * self.places.weight.T.T  # noqa: E731
    model = Called(call, words=nn.Embedding(9, 4), places=nn.Embedding(3, 4), norm=nn.LayerNorm([3, 4]))
    counted = flops(model, torch.tensor([[1, 2, 3]]))
    assert (counted.dense, counted.not_counted) == (0, [])


def test_layers_of_some_weights_stand_in_the_order_in_which_they_run():
    model = Called(lambda self, x: self.a(self.b(x)), **{name: nn.Linear(2, 2) for name in ("idle", "a", "b")})
    counted = flops(model, torch.ones(1, 2))
    assert counted.layers(["idle.weight", "a.weight", "b.weight"]) == ["b", "a", "idle"]
    assert counted.layers(["a.weight"]) == ["a"]


def test_what_has_no_formula_is_named():
    counted = flops(Called(lambda self, x: torch.cdist(x, self.fc.weight), fc=nn.Linear(4, 3)), torch.zeros(1, 4))
    assert counted.dense == 0
    assert counted.not_counted == ["aten._cdist_forward"]
    data = lab.load("digits", train=60, test=30, size=8)
    model = Called(lambda self, x: -torch.cdist(x.flatten(1), self.fc.weight), fc=nn.Linear(64, 10))
    run = lab.fit(model, data, epochs=0, progress=False)
    assert any("aten._cdist_forward" in warning for warning in run.result.warnings)


def test_counting_leaves_backends_and_network_as_they_were():
    before = (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled())
    broken = Called(lambda self, x: self.fc(x[:, :3]), fc=nn.Linear(4, 3))
    with pytest.raises(RuntimeError):
        flops(broken, torch.zeros(1, 4))
    assert not broken._forward_pre_hooks
    now = (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled())
    assert now == before


class Backwards(nn.Module):
    """Defined from the head to the stem: a layer, one in a function, attention, a layer used twice, one never used."""

    def __init__(self):
        super().__init__()
        self.never = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.bare = nn.Parameter(torch.ones(4, 4))
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.tied = nn.Linear(4, 4)
        self.stem = nn.Linear(4, 4)
        self.tied.weight = self.stem.weight

    def forward(self, x):
        x = self.again(self.stem(x.to(self.head.weight.dtype)))  # a look at the head is no use of it
        x = self.normed(self.tied(F.linear(x, self.bare)))
        return self.head(self.again(self.attention(x, x, x)[0]))


def test_weights_come_in_the_order_of_their_first_use():
    net = Backwards().train()
    net.attention.eval()
    modes = [module.training for module in net.modules()]
    with evaluating(net), torch.no_grad():
        used = layers.count(net, torch.ones(1, 3, 4)).used
    assert [name for name in used if "bias" not in name and not name.endswith("original0")] == [
        *("tied.weight", "again.weight", "bare", "normed.weight"),
        *("attention.in_proj_weight", "attention.out_proj.weight", "head.weight"),
    ]
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize("called", list(itertools.permutations("abc")))
def test_any_order_of_calls(called):
    held = nn.ModuleDict({name: nn.Conv2d(2, 2, 1, bias=False) for name in "abc"})
    net = Called(lambda self, x: nn.Sequential(*(self.held[name] for name in called))(x), held=held)
    assert flops(net, torch.ones(1, 2, 4, 4)).used == [f"held.{name}.weight" for name in called]


def test_a_transformer_layer_is_one_operation_that_takes_its_weights_in_order():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    used = flops(layer, torch.ones(1, 3, 8)).used
    assert [name for name in used if name in lab.prunable(layer)] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


WITHOUT_HEADS = {"init_weights": False, "aux_logits": False}
SETTINGS = {
    "maxvit_t": {"input_size": (224, 224)},
    "vit_b_32": {"image_size": 64},
    "googlenet": WITHOUT_HEADS,
    "inception_v3": WITHOUT_HEADS,
}
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet34", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)


def agrees(model: nn.Module, x: Tensor) -> None:
    """As many as torch's own counter, and the sparse ones as a recount of it, weight by weight."""
    counted = flops(model, x)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as theirs, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(x)
    torch.backends.mha.set_fastpath_enabled(fast)
    assert counted.dense == pytest.approx(theirs.get_total_flops(), rel=0.01)
    assert counted.not_counted == []
    masks = lab.keep_top({n: torch.rand_like(w) for n, w in lab.prunable(model).items()}, 0.7)
    kept = sum(n * float(masks[w].float().mean()) if w in masks else n for w, n in counted.weights.items())
    assert counted.sparse(masks) == pytest.approx(kept + counted.other)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_cost_what_torch_counts(name):
    from pruninglab._torchvision import torchvision

    size = {"inception_v3": 96, "maxvit_t": 224}.get(name, 64)
    agrees(torchvision.models.get_model(name, weights=None, **SETTINGS.get(name, {})), torch.zeros(1, 3, size, size))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_transformers_cost_what_torch_counts(name):
    hf = pytest.importorskip("transformers")
    own = {"vocab_size": 90, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    own |= {"num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
    gpt = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    made = {
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(num_labels=3, **own)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **own)),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(image_size=32, patch_size=8, **own)),
    }
    agrees(made[name](), torch.zeros(1, 3, 32, 32) if name == "vit" else torch.arange(12)[None])


class Tagger(nn.Module):
    def __init__(self, tied_first: bool | None = None):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 20)
        if tied_first is not None:
            self.head.weight = self.embed.weight
        if tied_first is False:  # the linear layer is registered first
            self._modules = {"head": self.head, "embed": self.embed, "rnn": self.rnn}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0]).transpose(1, 2)


class Conv1D(nn.Module):
    """As transformers has it: the weight of a linear layer, inputs first."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


def names(model: nn.Module, **options: Any) -> list[str]:
    return list(lab.prunable(model, **options))


def test_matrices_of_every_kind_of_layer_are_in_scope():
    assert names(Tagger()) == ["embed.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"]
    kinds = [
        *(nn.Conv1d(2, 3, 1), nn.ConvTranspose2d(2, 3, 1), nn.Bilinear(2, 3, 4), nn.GRUCell(2, 3), Conv1D(3, 2)),
        *(nn.MultiheadAttention(4, 2, kdim=3, vdim=2), nn.EmbeddingBag(5, 2)),
    ]
    for layer in kinds:
        matrices = [n for n, p in layer.named_parameters() if p.ndim > 1 and "bias" not in n]
        assert names(nn.Sequential(layer)) == [f"0.{name}" for name in matrices]
        assert len(names(nn.Sequential(layer), biases=True)) == len(list(layer.parameters()))


@pytest.mark.parametrize("first", [True, False])
def test_a_tied_weight_is_in_scope_whichever_layer_comes_first(first):
    model = Tagger(tied_first=first)
    tied = "embed.weight" if first else "head.weight"
    assert tied in names(model)
    assert names(model, skip="Embedding") == names(model, skip="head.*") == names(model, skip=nn.Linear)
    assert tied not in names(model, skip="Embedding")


def test_scope_by_names_and_types():
    model = Tagger()
    model.register_parameter("place", nn.Parameter(torch.randn(3, 8)))
    assert names(model, include="place")[0] == "place"
    assert names(model, skip=["Embedding", "rnn.*"]) == names(model, skip=[nn.Embedding, nn.LSTM]) == ["head.weight"]
    assert names(model, skip="RNNBase") == ["embed.weight", "head.weight"]
    assert names(model, skip="head.*", include="head.bias") == ["embed.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    with pytest.raises(lab.ConfigError, match="include='nope' matches no parameter and no type of layer"):
        names(model, include="nope")


def test_what_is_frozen_stays_unless_it_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    assert names(model, biases=True, norms=True) == ["2.weight", "2.bias"]
    assert names(model, include="0.weight") == ["0.weight", "2.weight"]
    model.requires_grad_(False)
    with pytest.raises(lab.ConfigError, match=r"nothing to prune.*frozen"):
        lab.prune(model, 0.5)
    assert lab.prune(model, 0.5, include="*.weight", skip="1.*")[1].total == 24


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_of_a_weight_under_weight_norm_the_direction_is_pruned(old):
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    if old:
        with pytest.raises(lab.ConfigError, match=r"computes 'weight' .*parametrizations"):
            lab.prune(model, 0.5)
        return
    assert names(model) == ["0.weight", "2.weight"]
    pruned, masks = lab.prune(model, {"0.weight": 0.5})
    assert torch.equal(cast(Tensor, pruned.get_submodule("0").weight) != 0, masks["0.weight"])


def test_what_cannot_be_copied_is_refused_in_words():
    data = lab.load("digits", train=60, test=30, size=8)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(lab.ConfigError, match=r"1\.weight has no shape yet"):
        lab.fit(lazy, data, epochs=0, progress=False)
    masked = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch_prune.l1_unstructured(masked[1], "weight", 0.5)
    with pytest.raises(lab.ConfigError, match="from_torch"):
        lab.fit(masked, data, epochs=0, progress=False)


def test_a_run_prunes_a_network_of_the_users_own_whole():
    data = lab.load("sorting", train=200, test=50)
    model = Tagger()
    run = lab.fit(model, data, lab.methods.Gradual(lab.Cubic(0.8)), epochs=1, collapse="allow", progress=False)
    assert run.masks.total / sum(p.numel() for p in model.parameters()) > 0.85
    for name, weight in lab.prunable(run.model).items():
        assert torch.equal(weight != 0, run.masks[name])


def test_a_model_that_returns_no_tensor_is_refused_before_training():
    data = lab.load("digits", train=60, test=30, size=8)
    model = Called(lambda self, x: {"scores": [self.fc(x.flatten(1))]}, fc=nn.Linear(64, 10))
    with pytest.raises(lab.ConfigError, match=r"Called returns a dict without logits; expected a tensor, a tuple"):
        lab.fit(model, data, epochs=1, progress=False)


def test_a_kind_is_one_entry():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.matrix)

    model = nn.Sequential(Scaled(), nn.Linear(3, 2))
    assert names(model) == ["1.weight"]
    layers.KINDS[Scaled] = layers.Kind(prunable=True)
    try:
        assert names(model) == ["0.matrix", "1.weight"]
    finally:
        del layers.KINDS[Scaled]


LINEAR_LIKE = [
    *(nn.Linear(4, 6), Conv1D(6, 4), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 8, 3, groups=4)),
    nn.ConvTranspose2d(4, 6, 3),
]


@pytest.mark.parametrize("layer", LINEAR_LIKE, ids=repr)
def test_links_are_those_that_carry_a_signal(layer):
    """Put 1 into one channel at a time and look at which channels it reaches."""
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.9] = 0
        layer.weight.abs_()
        layer.bias.zero_()
    reads, gives = layers.kinds.inputs(layer), layers.kinds.outputs(layer)
    groups = layers.kinds.conv_groups(layer)
    links = layers.kinds.links(layer)
    for channel, output in itertools.product(range(reads), range(gives)):
        last = layers.kind_of(layer).last
        x = torch.zeros(1, reads) if last else torch.zeros(1, reads, *[9] * (layer.weight.ndim - 2))
        x.movedim(layers.kinds.channel_dimension(layer, x), 0)[channel] = 1
        with torch.no_grad():
            y = layer(x)
        reached = bool(y.movedim(layers.kinds.channel_dimension(layer, y), 0)[output].any())
        inside = channel // (reads // groups) == output // (gives // groups)
        assert reached == (inside and bool(links[output, channel % (reads // groups)]))
