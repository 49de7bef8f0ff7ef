"""Networks that the graph of channels cannot follow are refused in plain words, and quickly."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pruninglab as lab
from pruninglab import analysis, structured

COLOUR: Any = SimpleNamespace(shape=(3, 32, 32), classes=10)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121", "squeezenet1_1", "googlenet"])
def test_channels_side_by_side_are_refused(name):
    options: Any = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = lab.build(f"torchvision:{name}", COLOUR, seed=0, **options)
    with pytest.raises(lab.ConfigError, match=r"calls (cat|chunk), which puts channels side by side"):
        analysis.channel_graph(model)


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_sums_are_followed(name):
    model = lab.build(name, COLOUR, seed=0)
    graph, inputs = analysis.channel_graph(model)
    assert inputs == 3
    assert graph.shape[0] == 3 + sum(len(p) for p in model.parameters() if p.ndim > 1)


def test_a_shuffle_of_channels_is_refused_with_what_to_do():
    model = lab.build("torchvision:shufflenet_v2_x0_5", COLOUR, seed=0)
    with pytest.raises(lab.ConfigError, match=r"its code rearranges them.* Prune single weights instead"):
        structured.groups(model, torch.zeros(1, 3, 32, 32))
