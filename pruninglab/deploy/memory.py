"""Where the values of a network lie in one fixed block of memory: those that are needed at the same time, apart."""

from dataclasses import dataclass

import numpy as np

from .graph import Network

SCRATCH = " before pooling"
"""Ends the name of what a convolution computes of one channel before it pools."""


@dataclass
class Room:
    """Numbers that one value takes, from the layer that makes it to the last that reads it."""

    size: int
    first: int
    last: int
    at: int = -1

    def meets(self, other: "Room") -> bool:
        return self.first <= other.last and other.first <= self.last


def lay_out(network: Network) -> tuple[dict[str, str | int], int]:
    """The place of each value, and how many numbers all places take; `image` and `logits` are the caller's.

    Large values are placed first, each at the lowest place where nothing lies that is needed at the same time.
    """
    owner, rooms = _lifetimes(network)
    placed: list[Room] = []
    for room in sorted(rooms.values(), key=lambda room: -room.size):
        room.at = 0
        for other in sorted((other for other in placed if other.meets(room)), key=lambda other: other.at):
            if room.at + room.size <= other.at:
                break
            room.at = max(room.at, other.at + other.size)
        placed.append(room)
    outside = {owner[network.output]: "logits", network.input: "image"}
    places: dict[str, str | int] = {name: room.at for name, room in rooms.items()}
    places |= {name: outside[own] if own in outside else rooms[own].at for name, own in owner.items()}
    return places, max((room.at + room.size for room in placed), default=0)


def _lifetimes(network: Network) -> tuple[dict[str, str], dict[str, Room]]:
    """Which value's memory each value is in, and the rooms of those that need one."""
    owner, rooms = {network.input: network.input}, {}
    for number, layer in enumerate(network.layers):
        for name in layer.inputs:
            if owner[name] in rooms:
                rooms[owner[name]].last = number
        if layer.kind == "reshape":
            owner[layer.output] = owner[layer.inputs[0]]
            continue
        owner[layer.output] = layer.output
        rooms[layer.output] = Room(int(np.prod(network.shapes[layer.output])), number, number)
        if layer.pool:
            made = layer.before_pooling(network.shapes[layer.inputs[0]])
            rooms[layer.output + SCRATCH] = Room(int(np.prod(made)), number, number)
    rooms.pop(owner[network.output], None)
    return owner, rooms
