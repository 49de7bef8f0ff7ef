"""The rows of the papers' ImageNet tables, for whoever has the images and the hours.

They start from torchvision's checkpoints. The ADMM paper starts from Caffe's; its AlexNet has groups, torchvision's has
none. The papers do not print how long they train, but for VGG-16 by relevance (30 epochs): all rows take as many.
"""

from typing import Any

from ..methods.penalties.sensitivity import Sensitivity
from .rows import Row, Table, _admm, _controls, _dense, _han, _progressive, _pulled, _relevance, _surgeon

PROGRESSIVE = "Progressive Weight Pruning"
SMALL_STEPS: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-3, "weight_decay": 1e-4}


def _times(rate: float) -> float:
    return 1 - 1 / rate


ALEXNET = {
    "dense": Row("dense", _dense),
    "iterative-9": Row(
        "iterative magnitude", _han(_times(9.1)), _times(9.1), (("admm", 1, "Network Pruning (Han et al., 2015)"),)
    ),
    "surgeon-9": Row(
        "layer-wise surgeon",
        _surgeon(_times(9.1)),
        _times(9.1),
        (("admm", 1, "Optimal Brain Surgeon (Dong et al., 2017)"),),
    ),
    "direct-21": Row(
        "direct ADMM", _admm(_times(21)), _times(21), (("admm", 1, "ADMM Pruning (Zhang et al., 2018b)"),)
    ),
    "progressive-30": Row(
        "progressive ADMM", _progressive(18, 21, 30), _times(30), (("admm", 1, f"{PROGRESSIVE} (BVLC Model) 30×"),)
    ),
    **_controls(**{"9": _times(9.1), "21": _times(21), "30": _times(30)}),
}
VGG16 = {
    "dense": Row("dense", _dense),
    "relevance": Row("relevance", _relevance(0.926, 0.685, 0.01, 2500, 1e-4), 0.926, (("bonetta", 5, "Our model"),)),
    "iterative-13": Row(
        "iterative magnitude",
        _han(0.925),
        0.925,
        (("bonetta", 5, "Han et al., 2015 [1]"), ("admm", 3, "Network Pruning (Han et al., 2015)")),
    ),
    "sensitivity": Row(
        "sensitivity", _pulled(0.929, Sensitivity(1e-4)), 0.929, (("bonetta", 5, "Tart. et al., 2018 [3]"),)
    ),
    "direct-19": Row(
        "direct ADMM", _admm(_times(19.5)), _times(19.5), (("admm", 3, "ADMM Pruning (Zhang et al., 2018b)"),)
    ),
    "progressive-34": Row(
        "progressive ADMM", _progressive(19.5, 30, 34), _times(34), (("admm", 3, f"{PROGRESSIVE} 34×"),)
    ),
    **_controls(**{"13": 0.925, "13-5": 0.926, "14": 0.929, "19": _times(19.5), "34": _times(34)}),
}
RESNET50 = {
    "dense": Row("dense", _dense),
    "progressive-6": Row("progressive ADMM", _progressive(3, 6), _times(6), (("admm", 4, f"{PROGRESSIVE} 6×"),)),
    "progressive-9": Row(
        "progressive ADMM", _progressive(6, 9.16), _times(9.16), (("admm", 4, f"{PROGRESSIVE} 9.16×"),)
    ),
    "progressive-17": Row(
        "progressive ADMM", _progressive(6, 9.16, 17.43), _times(17.43), (("admm", 4, f"{PROGRESSIVE} 17.43×"),)
    ),
    **_controls(**{"6": _times(6), "9": _times(9.16), "17": _times(17.43)}),
}


def _of_images(rows: dict[str, Row], model: str, checkpoint: str) -> Table:
    return Table(rows, "", f"torchvision:{model}", checkpoint, start=0, epochs=30, val=0.02, options=SMALL_STEPS)


IMAGENET = {
    "AlexNet": _of_images(ALEXNET, "alexnet", "alexnet-owt-7be5be79.pth"),
    "VGG-16": _of_images(VGG16, "vgg16", "vgg16-397923af.pth"),
    "ResNet-50": _of_images(RESNET50, "resnet50", "resnet50-0676ba61.pth"),
}
