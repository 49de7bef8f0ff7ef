"""One look: colours that everybody can tell apart, a look for each method, and words that never touch."""

from itertools import combinations

import numpy as np
import pytest

from pruninglab.plots import figure as figures
from pruninglab.plots.looks import BLACK, COLOURS, GREY, LOOKS, look, looks

# Machado, Oliveira and Fernandes (2009): what is left of a colour, in linear RGB.
VISION = {
    "full": np.eye(3),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.clip(TO_XYZ @ rgb, 1e-6, None) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colour", [*COLOURS, BLACK, GREY])
def test_a_colour_stands_out_from_the_card(colour):
    assert 1.05 / (linear(colour) @ TO_XYZ[1] + 0.05) >= 3  # the contrast that WCAG asks of graphics


@pytest.mark.parametrize("vision", VISION)
def test_each_two_colours_are_told_apart(vision):
    seen = {colour: cielab(np.clip(VISION[vision] @ linear(colour), 0, 1)) for colour in COLOURS}
    near = min((np.linalg.norm(seen[a] - seen[b]), a, b) for a, b in combinations(COLOURS, 2))
    assert near[0] >= 20, near


@pytest.mark.parametrize(
    ("label", "method"),
    [
        ("Random-Mask", "random mask"),
        ("gradual, |w|", "gradual"),
        ("Gradual (2)", "gradual"),
        ("WeightMom, text", "WeightMom"),
        ("OneShot", "one-shot"),
        ("Dense", "dense"),
    ],
)
def test_a_method_looks_alike_under_all_its_names(label, method):
    assert look(label) == LOOKS[method]
    assert looks(["other", label, "more"])[label] == LOOKS[method]


def test_in_one_figure_no_two_look_alike():
    labels = ["gradual, a", "gradual, b", *LOOKS, *(f"mine {i}" for i in range(30))]
    given = looks(labels)
    assert list(given) == labels
    assert len(set(given.values())) == len(labels)
    assert len({one.colour for one in looks("abcdefg").values()}) == 7  # as long as colours last


def test_texts_that_touch_or_are_cut_off_are_found():
    figure, (axes,) = figures.panels(1)
    axes.set(xticks=[0.5, 0.51, 5], xticklabels=["one label", "another", "beyond"], xlim=(0, 1))
    assert figures.touching(figure) == ["one label | another"]
    axes.set(xticks=[0.2, 0.8], xticklabels=["one label", "another"])
    assert figures.touching(figure) == []
    axes.set(xscale="log", xticks=[1e-11, 1e-9, 1e-3], xticklabels=["beyond", "at the edge", "inside"], xlim=(1e-9, 1))
    assert figures.touching(figure) == []
    figure.text(0.9, 0.5, "a long text that leaves the picture")
    assert figures.touching(figure) == ["a long text that leaves the picture"]


def test_levels_that_are_near_share_a_label():
    figure, (axes,) = figures.panels(1)
    axes.set(xscale="log", xlim=(0.009, 1))
    figures.log_levels(axes.xaxis, [0.01, 0.0102, 0.1, 0.5])
    assert axes.xaxis.get_majorticklocs().tolist() == [0.01, 0.1, 0.5]
    assert figures.touching(finished := figures.finish(figure, "A title", "words")) == []
    assert [t.get_text() for t in finished.axes[0].get_xticklabels()] == ["1 %\n100×", "10 %\n10×", "50 %\n2×"]
