"""Splits too large for memory: every batch is read by worker processes when it is asked for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import DataError
from ..layers.calls import Inputs
from ..randomness import key, own_randomness, seeded_outside_torch
from ..typed import Checked, Count, CountFromZero
from .splits import Augmentation, Batch, Batches, Levels, Moment, described, fed, hashed, placed, planned

Ticket = tuple[int, int | None]  # which item, and the seed it varies by; None is the item as it is judged


@runtime_checkable
class Items(Protocol):
    """What a stream reads from: one raw tensor per ticket, all of one shape, in any process."""

    def __getitem__(self, ticket: Ticket) -> Tensor: ...
    def take(self, index: Tensor) -> "Items": ...
    def identity(self, position: int) -> bytes: ...


@dataclass(frozen=True, eq=False, repr=False)
class StreamSplit(Checked):
    """As `Split`, except that images are read when asked for.

    A training item varies by a seed and its position alone, so workers and batches change nothing: `fit` gives one seed
    to an epoch. Its own random transforms may draw from torch, numpy or `random`; a generator that a dataset keeps for
    itself is not seeded.
    """

    items: Items
    y: Tensor
    shape: tuple[Count, ...]
    mean: Levels | None = None
    std: Levels | None = None
    augment: tuple[Augmentation, ...] = ()
    varied: bool = False  # whether the items themselves vary with the seeds, as those of a training split do
    workers: CountFromZero = 2

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __repr__(self) -> str:
        return described(self)

    @property
    def device(self) -> torch.device:
        return self.y.device

    def to(self, device: str | torch.device) -> Self:
        return replace(self, y=self.y.to(device))

    def take(self, index: Tensor) -> Self:
        return replace(self, items=self.items.take(index), y=self.y[index])

    def batches(
        self,
        batches: Batches = 1000,
        seeds: Sequence[int] | None = None,
        item_seed: int | None = None,
        moment: Moment = (0, 0),
    ) -> Iterator[Batch]:
        """As of `Split`; every batch is read anew. Items vary by `item_seed`, or else by the seed of their batch."""
        plan = planned(batches, len(self), seeds)
        varied = seeds if self.varied else None
        return fed(self, self._read(_Tickets(plan, varied, item_seed)), seeds, placed(plan, self.device), moment)

    def _read(self, tickets: "_Tickets") -> Iterator[Batch]:
        plan = tickets.plan
        loader = DataLoader(
            _Stacks(self.items),
            sampler=tickets,
            batch_size=None,  # a ticket list is a batch
            num_workers=min(self.workers, len(plan)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws a seed for its workers from the global one
        )
        for index, x in zip(placed(plan, self.device), loader, strict=True):
            if isinstance(x, DataError):
                raise x
            yield x.to(self.device, non_blocking=True), self.y[index]

    def digest(self, digest: Any) -> None:
        """Feed labels, the identity of every item and the pixels of 100 to a hash; reading all could take hours."""
        hashed(digest, self.y)
        for position in range(len(self)):
            digest.update(self.items.identity(position))
        for position in torch.linspace(0, len(self) - 1, min(100, len(self))).long().tolist():
            hashed(digest, self.items[position, None])


def not_finite(x: Tensor | Inputs) -> Tensor:
    """The positions of the items of a batch that hold NaN or infinity."""
    strange = torch.zeros(len(x), dtype=torch.bool)
    for part in x.parts().values() if isinstance(x, Inputs) else (x,):
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            strange |= ~torch.isfinite(part.flatten(1) if part.dim() > 1 else part[:, None]).all(1).cpu()
    return strange.nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class _Stacks(Dataset[Tensor | DataError]):
    """A DataError is given back, not raised: a worker that raises takes seconds to stop and buries the message."""

    items: Items

    def __getitem__(self, tickets: list[Ticket]) -> Tensor | DataError:
        try:
            x = stacked([self.items[ticket] for ticket in tickets])
            if len(strange := not_finite(x)):
                raise DataError(
                    f"item {tickets[int(strange[0])][0]} holds NaN or infinity: leave it out, or mend its transform"
                )
            return x
        except DataError as error:
            return error


@dataclass(frozen=True, eq=False)
class _Tickets(Sampler[list[Ticket]]):
    plan: list[Tensor]
    seeds: Sequence[int] | None
    item_seed: int | None

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Ticket]]:
        for number, index in enumerate(self.plan):
            if self.seeds is None:
                yield [(i, None) for i in index.tolist()]
            else:
                seed = self.seeds[number] if self.item_seed is None else self.item_seed
                yield [(i, key(seed, "item", i)) for i in index.tolist()]


def stacked(items: Sequence[Any]) -> Any:
    """One batch of items, tensors or `Inputs` of one shape."""
    if isinstance(items[0], Inputs):
        return _stacked_inputs(items)
    for position, item in enumerate(items):
        if item.shape != items[0].shape:
            raise DataError(
                f"item {position} has the shape {tuple(item.shape)}, item 0 {tuple(items[0].shape)}: bring all to one "
                "shape in the dataset's transform; if that varies with every reading, take resident=False"
            )
    return torch.stack(list(items))


def _stacked_inputs(items: Sequence[Inputs]) -> Inputs:
    parts = [item.parts() for item in items]
    for position, part in enumerate(parts):
        if part.keys() != parts[0].keys():
            raise DataError(f"item {position} has {', '.join(part)}, item 0 {', '.join(parts[0])}: make them alike")
        for name, tensor in part.items():
            if tensor.shape != parts[0][name].shape:
                raise DataError(
                    f"{name} of item {position} has the shape {tuple(tensor.shape)}, of item 0 "
                    f"{tuple(parts[0][name].shape)}: pad them, or give collate= that does"
                )
    together = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    places = len(items[0].places)
    return Inputs(tuple(together.values())[:places], dict(list(together.items())[places:]))


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files, cut and brought to `size`: a random part, perhaps mirrored, with a seed; the middle without."""

    folder: Path
    paths: tuple[str, ...]  # below the folder
    size: int

    def take(self, index: Tensor) -> Self:
        return replace(self, paths=tuple(self.paths[i] for i in index.tolist()))

    def identity(self, position: int) -> bytes:
        path = self.paths[position]
        return f"{path} {(self.folder / path).stat().st_size}".encode()

    def __getitem__(self, ticket: Ticket) -> Tensor:
        position, seed = ticket
        image = self._opened(position)
        if seed is None:
            return self._resized(image, _middle(*image.size))
        g = torch.Generator().manual_seed(seed)
        x = self._resized(image, _random_part(*image.size, g))
        return x.flip(2) if torch.rand((), generator=g) < 0.5 else x

    def readable(self) -> list[int]:
        """The positions of the files that are images; reads them all."""
        found = []
        for position in range(len(self.paths)):
            with suppress(DataError):
                self._opened(position)
                found.append(position)
        return found

    def _opened(self, position: int) -> Image.Image:
        path = self.folder / self.paths[position]
        try:
            with Image.open(path) as file:
                return file.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} (item {position}) cannot be read as an image ({error}): replace the file or remove it, or "
                'leave out all such files with load(…, unreadable="skip")'
            ) from error

    def _resized(self, image: Image.Image, box: tuple[float, float, float, float]) -> Tensor:
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    """The square that a resize of the shorter side to 256 and a central crop to 224 would keep."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_part(width: int, height: int, g: torch.Generator) -> tuple[float, float, float, float]:
    """8 to 100 % of the area at a ratio of 3:4 to 4:3 (Szegedy et al., 2015); the first of ten draws that fits."""
    area, ratio, across, down = torch.rand(4, 10, generator=g, dtype=torch.float64)
    area = width * height * (0.08 + 0.92 * area)
    ratio = torch.exp((2 * ratio - 1) * math.log(4 / 3))
    wide, high = torch.sqrt(area * ratio), torch.sqrt(area / ratio)
    fits = ((wide <= width) & (high <= height)).nonzero()
    if not len(fits):
        return _middle(width, height)
    first = int(fits[0])
    w, h = float(wide[first]), float(high[first])
    left, top = float(across[first]) * (width - w), float(down[first]) * (height - h)
    return left, top, left + w, top + h


@dataclass(frozen=True, eq=False)
class DatasetItems:
    """The images of a `torch.utils.data.Dataset`; its own random transforms draw from the ticket's seed."""

    dataset: Any
    index: Tensor
    labels: str | None = "labels"

    def take(self, index: Tensor) -> Self:
        return replace(self, index=self.index[index])

    def identity(self, position: int) -> bytes:
        return str(int(self.index[position])).encode()

    def __getitem__(self, ticket: Ticket) -> Tensor:
        return self.pair(ticket)[0]

    def pair(self, ticket: Ticket) -> tuple[Any, Any]:
        position, seed = ticket
        index = int(self.index[position])
        own = index if seed is None else seed
        with own_randomness(own), seeded_outside_torch(own):
            return pair_of(self.dataset[index], self.labels)


def pair_of(item: Any, labels: str | None) -> tuple[Any, Any]:
    """What the network is called with, and the label; of a dict the label is under the key `labels`.

    With `labels=None` all of it is for the network, and the label is empty.
    """
    if labels is None:
        return as_input(item), torch.empty(0)
    if not isinstance(item, Mapping):
        *inputs, y = item
        return as_input(inputs[0] if len(inputs) == 1 else tuple(inputs)), y
    key = "label" if labels == "labels" and "labels" not in item and "label" in item else labels
    if key not in item:
        raise DataError(
            f"an item has no {key!r}, only {', '.join(map(str, item))}: name the key of its label by labels=, or give "
            "labels=None if the network returns its loss itself"
        )
    return as_input({name: value for name, value in item.items() if name != key}), item[key]


def as_input(x: Any) -> Any:
    """A dict or a tuple of arrays as `Inputs`, an image or an array as a tensor."""
    if isinstance(x, Mapping):
        if strange := [name for name, value in x.items() if isinstance(value, str)]:
            raise DataError(f"{', '.join(strange)} of an item is text: turn it into numbers, or take that column out")
        return Inputs(names={str(name): torch.as_tensor(value) for name, value in x.items()})
    if isinstance(x, tuple) and x and all(isinstance(part, Tensor | np.ndarray) for part in x):
        return Inputs(tuple(map(torch.as_tensor, x)))
    return as_tensor(x)


def as_tensor(x: Any) -> Tensor:
    """A PIL image as uint8 (C, H, W); a grey uint8 image gets its channel; any other tensor as it is."""
    if isinstance(x, Image.Image):
        x = torch.from_numpy(np.array(x if x.mode in ("L", "RGB") else x.convert("RGB")))
        x = x.permute(2, 0, 1) if x.dim() == 3 else x
    x = torch.as_tensor(x)
    if x.dtype != torch.uint8:
        return x
    if x.dim() not in (2, 3):
        raise DataError(f"a uint8 item must be an image (H, W) or (C, H, W), not {tuple(x.shape)}: for others, convert")
    return x if x.dim() == 3 else x[None]
