"""A run as a folder for others: what is read from it is what was trained, and its card says what the record says."""

import pytest
import safetensors.torch
import torch
from torch import nn

import pruninglab as lab


def test_a_folder_holds_the_network_its_card_and_its_record(blobs, tmp_path):
    net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    run = lab.fit(net, blobs, lab.methods.OneShot(0.5), epochs=1, progress=False)
    folder = lab.train.publish(run, tmp_path / "mine")
    safetensors.torch.load_model(net, str(folder / "model.safetensors"))
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
    assert not (net.state_dict()["0.weight"] * ~run.masks["0.weight"]).any()
    assert lab.results.Result.read(folder / "record.json").row() == run.result.row()
    card = (folder / "README.md").read_text()
    for _, words in run.result.summary():
        assert words in card
    for layer in run.result.layers:
        assert f"| {layer['layer']} | {layer['kept']:,} | {layer['total']:,} |" in card
    assert lab.train.publish(run, folder) == folder


def test_tied_weights_are_written_once(blobs, tmp_path):
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    net[1].weight = net[0].weight
    run = lab.fit(net, blobs, epochs=0, progress=False)
    folder = lab.train.publish(run, tmp_path)
    assert len(safetensors.torch.load_file(folder / "model.safetensors")) == 1


def test_a_run_that_is_not_over_is_refused(blobs, tmp_path):
    def early(run: lab.Run) -> None:
        with pytest.raises(lab.RunError, match="still trains"):
            lab.train.publish(run, tmp_path / "early")

    lab.fit(nn.Linear(10, 4), blobs, epochs=1, progress=early)
    assert not (tmp_path / "early").exists()
