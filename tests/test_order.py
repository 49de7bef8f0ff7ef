"""The order of use is that of the computation, however and wherever a weight is defined."""

from itertools import permutations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import pruninglab as lab
from pruninglab.layers.order import forward_order


class Net(nn.Module):
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
    net = Net().train()
    net.attention.eval()
    modes = [module.training for module in net.modules()]
    order = forward_order(net, dict(net.named_parameters()), torch.ones(1, 3, 4))
    assert [name for name in order if "bias" not in name and not name.endswith("original0")] == [
        "tied.weight",
        "again.weight",
        "bare",
        "normed.parametrizations.weight.original1",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
        "never.weight",
    ]
    assert [module.training for module in net.modules()] == modes
    assert sorted(order) == sorted(dict(net.named_parameters()))


@pytest.mark.parametrize("called", list(permutations("abc")))
def test_any_order_of_calls(called):
    layers = nn.ModuleDict({name: nn.Conv2d(2, 2, 1) for name in "abc"})
    net = nn.Sequential(*(layers[name] for name in called))
    assert forward_order(net, lab.prunable(layers), torch.ones(1, 2, 4, 4)) == [f"{name}.weight" for name in called]


def test_a_transformer_layer_is_one_operation_that_takes_its_weights_in_order():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    order = forward_order(layer, lab.prunable(layer), torch.ones(1, 3, 8))
    assert order == ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
