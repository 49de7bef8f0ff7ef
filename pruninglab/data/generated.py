"""Data sets that are drawn instead of downloaded: `strokes` (28x28 grey digits), `textures` (32x32 colour), `sorting`.

All are functions of (n, seed) alone, on every processor. Numbers are drawn in float32, which is exact. All that follows
is float64, where the last bit of a sine does not reach the rounded pixel. The images are balanced over ten classes, and
drawn in blocks of whole-tensor operations. The constants that decide how hard they are were set by the validation
accuracy of a small network, so that pruning shows an effect.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..randomness import generator

BLOCK = 500  # images drawn at once: 500 x 784 pixels of doubles are 3 MB, and a few of them at a time
DIGITS = tuple("zero one two three four five six seven eight nine".split())
FAMILIES = ("stripes", "checks", "dots", "rings", "blobs")
RELATIONS = ("kindred", "opposed")  # the two hues of a texture lie near to or far from each other
TEXTURES = tuple(f"{relation} {family}" for family in FAMILIES for relation in RELATIONS)
Draw = Callable[[Tensor, torch.Generator], Tensor]


def strokes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Digits of polylines, bent, sheared and drawn with a pen of random width: uint8 (n, 1, 28, 28) and labels."""
    return _in_blocks(n, generator(seed, "strokes"), _draw_strokes)


def textures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Five patterns in two relations of colours: uint8 (n, 3, 32, 32) and labels.

    Without colour the two relations look alike, and the colours alone say nothing of the pattern: a net needs both.
    """
    return _in_blocks(n, generator(seed, "textures"), _draw_textures)


NUMBERS, LENGTH = tuple(map(str, range(16))), 12


def sorting(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of numbers, and as labels the same numbers in order: (n, LENGTH) each.

    No place can be answered from its own number alone: a net has to attend to all the others.
    """
    x = torch.randint(len(NUMBERS), (n, LENGTH), generator=generator(seed, "sorting"))
    return x, x.sort(1).values


def _in_blocks(n: int, g: torch.Generator, draw: Draw) -> tuple[Tensor, Tensor]:
    y = torch.randperm(n, generator=g) % 10
    x = torch.cat([draw(labels, g) for labels in y.split(BLOCK)])
    return x.clamp_(0, 1).mul_(255).round_().byte(), y


def _uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=g).double() * (high - low) + low


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    """Box and Muller's transform in blocks of 16, as `torch.randn` does it in float32; a rest is drawn anew."""
    n = math.prod(shape)
    drawn = _box_muller(torch.rand(n, generator=g)[: n // 16 * 16])
    if n % 16:
        rest = _box_muller(torch.rand(16, generator=g))
        drawn = torch.cat([drawn[: max(n - 16, 0)], rest])[-n:]
    return drawn.view(shape)


def _box_muller(uniform: Tensor) -> Tensor:
    radius, turn = uniform.double().view(-1, 2, 8).unbind(1)  # (blocks, 8) each
    radius, turn = (-2 * torch.log1p(-radius)).sqrt(), 2 * math.pi * turn
    return torch.cat([radius * turn.cos(), radius * turn.sin()], dim=1).flatten()


def _pixels(side: int) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel's centre, in [0, 1]."""
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    return rows, columns


SEGMENTS = 20  # of every digit, so that a block is one tensor


def _arc(x: float, y: float, width: float, height: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Points of an ellipse about (x, y); degrees go clockwise from the right, as y points down."""
    angles = [math.radians(start + (stop - start) * k / 12) for k in range(13)]
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


GLYPHS = (
    [_arc(0.5, 0.5, 0.26, 0.38, -90, 270)],
    [[(0.36, 0.27), (0.54, 0.12), (0.54, 0.88)]],
    [[*_arc(0.5, 0.34, 0.24, 0.22, -170, 40), (0.27, 0.88), (0.77, 0.88)]],
    [[*_arc(0.47, 0.31, 0.24, 0.19, -150, 90), *_arc(0.47, 0.69, 0.27, 0.19, -90, 150)]],
    [[(0.62, 0.88), (0.62, 0.12), (0.24, 0.62), (0.80, 0.62)]],
    [[(0.73, 0.12), (0.34, 0.12), (0.31, 0.46), *_arc(0.48, 0.64, 0.26, 0.24, -130, 150)]],
    [[(0.64, 0.12), (0.38, 0.38), *_arc(0.5, 0.66, 0.23, 0.22, 180, 540)]],
    [[(0.25, 0.14), (0.76, 0.14), (0.42, 0.88)]],
    [_arc(0.5, 0.30, 0.20, 0.18, 90, 450), _arc(0.5, 0.69, 0.24, 0.20, -90, 270)],
    [[*_arc(0.5, 0.34, 0.23, 0.22, 0, 360), (0.62, 0.88)]],
)


def _segments(glyph: list[list[tuple[float, float]]]) -> Tensor:
    """SEGMENTS pieces of equal length along the glyph's lines: (SEGMENTS, 2 ends, 2 coordinates)."""
    lines = [torch.tensor(line, dtype=torch.float64) for line in glyph]
    lengths = [(line[1:] - line[:-1]).norm(dim=1) for line in lines]
    total = sum(float(length.sum()) for length in lengths)
    counts = [round(SEGMENTS * float(length.sum()) / total) for length in lengths]
    counts[-1] = SEGMENTS - sum(counts[:-1])
    return torch.cat([_resampled(*parts) for parts in zip(lines, lengths, counts, strict=True)])


def _resampled(line: Tensor, lengths: Tensor, count: int) -> Tensor:
    along = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    wanted = torch.linspace(0, float(along[-1]), count + 1, dtype=along.dtype)
    piece = (torch.searchsorted(along, wanted, right=True) - 1).clamp(0, len(lengths) - 1)
    points = torch.lerp(line[piece], line[piece + 1], ((wanted - along[piece]) / lengths[piece])[:, None])
    return torch.stack([points[:-1], points[1:]], dim=1)


def _draw_strokes(y: Tensor, g: torch.Generator) -> Tensor:
    n = len(y)
    ends = torch.stack([_segments(glyph) for glyph in GLYPHS])[y].flatten(1, 2) - 0.5  # (n, points, x and y)
    ends = _affine(_bent(ends, g), g).unflatten(1, (SEGMENTS, 2)) + 0.5
    rows, columns = _pixels(28)
    distance = _distance(columns.flatten(), rows.flatten(), ends)
    width = _uniform(g, 0.018, 0.05, n, 1)
    ink = ((width - distance) * 28 + 0.5).clamp_(0, 1) * _uniform(g, 0.5, 1.0, n, 1)
    noisy = ink + _normal(g, *ink.shape) * _uniform(g, 0.0, 0.25, n, 1)
    return noisy.view(n, 1, 28, 28)


def _bent(points: Tensor, g: torch.Generator) -> Tensor:
    """Move points by two slow waves that cross the image: hand-drawn lines wobble without breaking."""
    n = len(points)
    for _ in range(2):
        direction = _uniform(g, -8, 8, n, 2, 1)
        phase = _uniform(g, 0, 2 * math.pi, n, 1, 1)
        points = points + torch.sin(points @ direction + phase) * _uniform(g, -0.068, 0.068, n, 1, 2)
    return points


def _affine(points: Tensor, g: torch.Generator) -> Tensor:
    n = len(points)
    angle, shear = _uniform(g, -0.3, 0.3, n), _uniform(g, -0.3, 0.3, n)
    wide, high = _uniform(g, 0.65, 1.05, n), _uniform(g, 0.7, 1.05, n)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack([wide * cos, wide * sin], dim=1), torch.stack([high * (shear * cos - sin), high * cos], dim=1)]
    return points @ torch.stack(rows, dim=1) + _uniform(g, -0.08, 0.08, n, 1, 2)


def _distance(x: Tensor, y: Tensor, ends: Tensor) -> Tensor:
    """From every pixel to the nearest of an image's segments: (n, pixels)."""
    nearest = ends.new_full((len(ends), len(x)), math.inf)
    for (x0, y0), (x1, y1) in zip(ends[:, :, 0].permute(1, 2, 0), ends[:, :, 1].permute(1, 2, 0), strict=True):
        dx, dy = (x1 - x0)[:, None], (y1 - y0)[:, None]
        px, py = x - x0[:, None], y - y0[:, None]
        along = ((px * dx + py * dy) / (dx**2 + dy**2).clamp_min(1e-9)).clamp_(0, 1)
        nearest = torch.minimum(nearest, (px - along * dx).square_() + (py - along * dy).square_())
    return nearest.sqrt_()


def _draw_textures(y: Tensor, g: torch.Generator) -> Tensor:
    n = len(y)
    pattern = _patterns(n, g)[torch.arange(n), y // 2][:, None]
    first, second = _colours(y % 2, g)
    clutter = _waves(n, g, low=0.5, high=2.0)[:, None] * _uniform(g, 0.0, 0.18, n, 1, 1, 1)
    image = torch.lerp(second, first, pattern) + clutter
    image = _occluded(image, g)
    image = (image - 0.5) * _uniform(g, 0.55, 1.0, n, 1, 1, 1) + 0.5
    return image + _normal(g, *image.shape) * _uniform(g, 0.02, 0.13, n, 1, 1, 1)


def _patterns(n: int, g: torch.Generator) -> Tensor:
    """How much of the first colour each pixel has, in [0, 1], for all families: (n, 5, 32, 32)."""
    rows, columns = (at - 0.5 for at in _pixels(32))
    angle, cycles = _uniform(g, 0, math.pi, n, 1, 1), _uniform(g, 3.0, 5.0, n, 1, 1)
    u = 2 * math.pi * (cycles * (columns * torch.cos(angle) + rows * torch.sin(angle)) + _uniform(g, 0, 1, n, 1, 1))
    v = 2 * math.pi * (cycles * (rows * torch.cos(angle) - columns * torch.sin(angle)) + _uniform(g, 0, 1, n, 1, 1))
    centre = _uniform(g, -0.45, 0.45, n, 2, 1, 1)
    radius = torch.hypot(rows - centre[:, 0], columns - centre[:, 1])
    fields = [
        torch.sin(u),
        2 * torch.sin(0.7 * u) * torch.sin(0.7 * v),
        torch.sin(u) + torch.sin(v) - 0.6,
        torch.sin(2 * math.pi * cycles * radius + u[:, :1, :1]),
        _waves(n, g, low=2.0, high=4.0),
    ]
    ink = torch.stack(fields, dim=1) * _uniform(g, 1.0, 3.0, n, 1, 1, 1)  # from soft to sharp edges
    swapped = torch.rand(n, 1, 1, 1, generator=g) < 0.5  # either colour may be the figure
    return torch.sigmoid(2 * torch.where(swapped, -ink, ink))


def _waves(n: int, g: torch.Generator, low: float, high: float) -> Tensor:
    """Sums of six plane waves in all directions, of about unit spread: clouds without an orientation."""
    rows, columns = _pixels(32)
    total = torch.zeros(n, 32, 32, dtype=torch.float64)
    for _ in range(6):
        angle, cycles = _uniform(g, 0, 2 * math.pi, n, 1, 1), _uniform(g, low, high, n, 1, 1)
        across = columns * torch.cos(angle) + rows * torch.sin(angle)
        total += torch.sin(2 * math.pi * (cycles * across + _uniform(g, 0, 1, n, 1, 1)))
    return total / math.sqrt(3)


def _colours(opposed: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two colours of any hue, each of its own brightness: (n, 3, 1, 1) each."""
    n = len(opposed)
    hue = _uniform(g, 0, 1, n)
    gap = torch.where(opposed.bool(), 0.40, 0.16).double() + _normal(g, n) * 0.06  # as a share of the circle
    side = torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0)
    return _rgb(hue, g), _rgb(hue + side * gap, g)


def _rgb(hue: Tensor, g: torch.Generator) -> Tensor:
    n = len(hue)
    thirds = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=torch.float64)
    wheel = torch.cos(2 * math.pi * (hue[:, None] - thirds))
    return (_uniform(g, 0.35, 0.65, n, 1) + wheel * _uniform(g, 0.15, 0.35, n, 1))[:, :, None, None]


def _occluded(image: Tensor, g: torch.Generator) -> Tensor:
    """Lay a rectangle of one random colour over each image."""
    n = len(image)
    rows, columns = _pixels(32)
    top, left = _uniform(g, 0, 1, n, 1, 1), _uniform(g, 0, 1, n, 1, 1)
    high, wide = _uniform(g, 0.1, 0.45, n, 1, 1), _uniform(g, 0.1, 0.45, n, 1, 1)
    inside = ((rows - top).abs() < high / 2) & ((columns - left).abs() < wide / 2)
    return torch.where(inside[:, None], _uniform(g, 0.1, 0.9, n, 3, 1, 1), image)
