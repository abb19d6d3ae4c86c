"""Constant channels that padding keeps from being folded: one of them can speak for the others.

A filter that is zero before a BatchNorm with an offset emits a constant. A convolution with zero padding turns it into
one sum inside the image and others at its border, so it does not fit into a bias. But two channels of constants `v` and
`w` are the same image but for a factor: giving the first one the weights `W1 + W2 * w / v` leaves the second unread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A weight that is scaled by more than this may leave the range of half precision.
_LARGEST_FACTOR = 1e3


@dataclass(frozen=True)
class ConstantRead:
    """A convolution with padding reads a channel that is the same number everywhere.

    Attributes:
        node: the convolution.
        group: which of its groups the channel belongs to.
        channel: the channel, counted over all groups.
        value: the number, not zero.
    """

    node: str
    group: int
    channel: int
    value: float


@dataclass(frozen=True)
class Transfer:
    """Add `factor` times the weights that read `source` to those that read `target`, and zero the former."""

    node: str
    source: int
    target: int
    factor: float


def transfers(reads: Mapping[int, Sequence[ConstantRead]], staying: set[int]) -> dict[int, list[Transfer]]:
    """Which units nobody needs to read any more, and what that takes.

    Args:
        reads: by unit, every read of it by a convolution with padding.
        staying: units that stay for other reasons; the others have no reader that could not do without them.

    Returns:
        By unit that becomes unread, what is done with each of its channels.
    """

    def rank(unit: int) -> tuple[bool, int, float, int]:
        # One order for all convolutions, so that they settle on the same few units: those that most of them read.
        return (unit not in staying, -len(reads[unit]), -min(abs(read.value) for read in reads[unit]), unit)

    speaker: dict[tuple[str, int], tuple[int, ConstantRead]] = {}
    for unit in sorted(reads, key=rank):
        for read in reads[unit]:
            speaker.setdefault((read.node, read.group), (unit, read))
    speaking = {unit for unit, _ in speaker.values()}
    found: dict[int, list[Transfer]] = defaultdict(list)
    for unit, own in reads.items():
        if unit in staying or unit in speaking:
            continue
        moves = []
        for read in own:
            target = speaker[read.node, read.group][1]
            moves.append(Transfer(read.node, read.channel, target.channel, read.value / target.value))
        if all(abs(move.factor) <= _LARGEST_FACTOR for move in moves):
            found[unit] = moves
    return dict(found)
