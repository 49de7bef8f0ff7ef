"""What a net is fed with: a split that lies on the device, and augmentations that take a batch at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers.calls import Inputs
from ..randomness import key
from ..typed import Checked, Count, CountFromZero, Filled

Augmentation = Callable[..., Tensor]
"""Called with a batch and a generator; with `takes_places = True`, with a batch, the images' places in their split, the
run's seed and the epoch."""
Batch = tuple[Any, Tensor]
"""Inputs, a tensor or `Inputs`, and labels: one a sample, or one for each place of it."""
NO_LABEL = nn.CrossEntropyLoss().ignore_index
"""The label of a place that does not count."""
Batches = Iterable[Tensor] | int
Moment = tuple[int, int]
"""The seed of a run, and its epoch."""


@dataclass(frozen=True)
class Crop(Checked):
    """Pad with black by `padding` and cut the first size out again, at a place of each image's own."""

    padding: CountFromZero = 4

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        windows = F.pad(x, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(2 * self.padding + 1, (2, n), generator=generator, device=x.device)
        return windows[torch.arange(n, device=x.device), :, top, left]


@dataclass(frozen=True)
class Shift(Checked):
    """Move each image by up to `pixels` in both directions; black comes in. A crop by the name that suits digits."""

    pixels: CountFromZero = 2

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return Crop(self.pixels)(x, generator)


@dataclass(frozen=True)
class Flip:
    """Mirror every second image, by chance, left to right."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
        return torch.where(mirrored, x.flip(3), x)


@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror each image in every second epoch. Chance decides for each image whether in the even or the odd ones.

    `Flip` shows an image the same way in half of all pairs of epochs. Here two epochs in a row always show both ways
    (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
    """

    takes_places: ClassVar[bool] = True

    def __call__(self, x: Tensor, places: Tensor, seed: int, epoch: int) -> Tensor:
        odd = (coins(places, seed) + epoch) % 2 == 1
        return torch.where(odd[:, None, None, None], x.flip(3), x)


def coins(places: Tensor, seed: int) -> Tensor:
    """0 or 1 for each place, by place and seed alone: the highest bit of a hash (murmur3's last steps)."""
    x = places.long() + key(seed, "alternate") % 2**31
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 31


@dataclass(frozen=True)
class Cutout(Checked):
    """Cover a square about a random pixel of each image, cut off at the border (DeVries and Taylor, 2017).

    The image's own mean colour stands in for the paper's zero, which there is the mean of the normalised data.
    """

    size: Count = 8

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        top = torch.randint(height, (n, 1, 1, 1), generator=generator, device=x.device) - self.size // 2
        left = torch.randint(width, (n, 1, 1, 1), generator=generator, device=x.device) - self.size // 2
        rows = torch.arange(height, device=x.device)[:, None] - top
        columns = torch.arange(width, device=x.device) - left
        covered = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return torch.where(covered, x.float().mean((2, 3), keepdim=True).to(x.dtype), x)


Levels = Annotated[tuple[float, ...], Filled()]
"""One for each channel."""
NAMED: dict[str, Augmentation] = {"shift": Shift(), "crop": Crop(), "flip": Flip(), "cutout": Cutout()}
NAMED |= {"alternate": AlternatingFlip()}


def augmentations(wanted: str | Sequence[str | Augmentation]) -> tuple[Augmentation, ...]:
    """`"crop+flip"`, `["crop", Cutout(12)]` and the like as a tuple of augmentations, done in this order."""
    parts = [part for part in wanted.split("+") if part] if isinstance(wanted, str) else wanted
    for part in parts:
        if not callable(part) and part not in NAMED:
            raise ConfigError(
                f"no augmentation is called {part!r}: take {', '.join(NAMED)}, several joined by '+', "
                "or an object called with (batch, generator)"
            )
    return tuple(NAMED[part] if isinstance(part, str) else part for part in parts)


def planned(batches: Batches, n: int, seeds: Sequence[int] | None) -> list[Tensor]:
    if isinstance(batches, int):
        if batches < 1:
            raise ConfigError(f"a batch of {batches} images cannot be given: ask for 1 or more")
        plan = list(torch.arange(n).split(batches))
    else:
        plan = list(batches)
    if seeds is not None and len(seeds) != len(plan):
        raise ConfigError(f"{len(seeds)} seeds for {len(plan)} batches: give one seed to each batch, or seeds=None")
    return plan


def placed(plan: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """The positions of all batches on the device, by one copy: a copy to a device waits for all that it has to do."""
    if device.type == "cpu" or not plan:
        return plan
    return torch.cat(list(plan)).to(device).split([len(index) for index in plan])


class Fed(Protocol):
    """What is told of a split to feed its batches and to show it."""

    @property
    def mean(self) -> tuple[float, ...] | None: ...
    @property
    def std(self) -> tuple[float, ...] | None: ...
    @property
    def augment(self) -> tuple[Augmentation, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...


def fed(
    split: Fed,
    raw: Iterable[tuple[Tensor, Tensor]],
    seeds: Sequence[int] | None,
    plan: Sequence[Tensor],
    moment: Moment,
) -> Iterator[Batch]:
    """Augment and normalise whole batches on the split's device."""
    affine = None
    if split.mean is not None and split.std is not None:
        mean, std = (torch.tensor(values, device=split.device)[:, None, None] for values in (split.mean, split.std))
        affine = 1 / (255 * std), -mean / std
    generator = torch.Generator(split.device)
    for number, (x, y) in enumerate(raw):
        if seeds is not None and split.augment:
            generator.manual_seed(seeds[number])
            for augment in split.augment:
                given = (plan[number], *moment) if getattr(augment, "takes_places", False) else (generator,)
                x = augment(x, *given)
        if affine is not None:
            x = x.to(torch.float32, memory_format=torch.channels_last).mul_(affine[0]).add_(affine[1])
        elif isinstance(x, Tensor) and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        yield x, y


def described(split: Fed) -> str:
    how = "+".join(str(augment) for augment in split.augment)
    shape = "x".join(map(str, split.shape))
    return f"{type(split).__name__}({len(split)} of {shape} on {split.device}{', ' + how if how else ''})"


def hashed(digest: Any, tensor: Tensor | Inputs) -> None:
    if isinstance(tensor, Inputs):
        for name, part in tensor.parts().items():
            digest.update(name.encode())
            hashed(digest, part)
        return
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())


@dataclass(frozen=True, eq=False, repr=False)
class Split(Checked):
    """A whole split on one device. Images stay uint8; batches are augmented and normalised in bulk."""

    x: Tensor | Inputs
    """A tensor, or `Inputs` for a network that takes several."""
    y: Tensor
    mean: Levels | None = None  # per channel, of values in [0, 1]; None where x is not uint8
    std: Levels | None = None
    augment: tuple[Augmentation, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __repr__(self) -> str:
        return described(self)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: str | torch.device) -> Self:
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def take(self, index: Tensor) -> Self:
        return replace(self, x=self.x[index], y=self.y[index])

    def batches(
        self,
        batches: Batches = 1000,
        seeds: Sequence[int] | None = None,
        item_seed: int | None = None,
        moment: Moment = (0, 0),
    ) -> Iterator[Batch]:
        """Batches of a size in order, or of the given positions; with `seeds`, one to each, they are augmented.

        `item_seed` is for splits whose items vary by themselves (`StreamSplit`). `moment` is the run's seed and the
        epoch, for augmentations that alternate.
        """
        plan = placed(planned(batches, len(self), seeds), self.device)
        return fed(self, ((self.x[index], self.y[index]) for index in plan), seeds, plan, moment)

    def digest(self, digest: Any) -> None:
        """Feed what the split holds to a hash."""
        hashed(digest, self.x)
        hashed(digest, self.y)
