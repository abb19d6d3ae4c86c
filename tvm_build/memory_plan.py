"""Where each tensor lies in memory.

Tensors in buffers are parts of one large buffer, the arena: two whose lives do not overlap may share bytes. As the
order of launches is fixed, this is the packing of rectangles, time by bytes, into the lowest strip ("dynamic storage
allocation"). It is hard in general; each greedy plan here looks at the tensors in an order of its own, and the smallest
is kept (compared by Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", arXiv 2001.03288).

An image of two dimensions cannot lie in a buffer everywhere, so tensors in such images share whole images, of one width
and format, which take tensors with fewer rows than they have. Not shorter rows: what lies beside a row must read as
zero, not as what another tensor left there. Below the last row no kernel reads. That takes more memory than buffers do:
`tvm_build.storage` puts tensors into images only as far as that is worth it. Images of one dimension are another way to
read a tensor in the arena, and take nothing.

`tvm_build.memory_check` proves what comes out, from the launches alone.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tvm_build.launch_plan import IMAGE_FORMATS, PART_ALIGNMENT, ImageFormat


@dataclass(frozen=True)
class ImageRow:
    """One row of a tensor in an image. Tensors may share an image if their rows are equal."""

    width: int
    format: ImageFormat

    @property
    def size(self) -> int:
        """Bytes."""
        return self.width * IMAGE_FORMATS[self.format]


@dataclass(frozen=True)
class Life:
    """A tensor of `size` bytes that must keep its content from launch `first` to launch `last`, both included.

    It lies in a buffer, or, if it has a `row`, in an image.
    """

    name: str
    size: int
    first: int
    last: int
    row: ImageRow | None = None

    def overlaps(self, other: Life) -> bool:
        """Whether both are alive at some launch."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Place:
    """From byte `offset` of memory object `object`."""

    object: int
    offset: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes of memory objects, and the place of each tensor.

    Attributes:
        objects: bytes of each object, images included.
        places: by tensor.
        rows: what a row of an image is, by object's number; all others are buffers.
    """

    objects: tuple[int, ...]
    places: Mapping[str, Place]
    rows: Mapping[int, ImageRow] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(self.objects)


def lives(
    sizes: Mapping[str, int],
    accesses: Sequence[Iterable[str]],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
    rows: Mapping[str, ImageRow] | None = None,
) -> tuple[Life, ...]:
    """How long each tensor must keep its content.

    Args:
        sizes: bytes by tensor.
        accesses: for each launch, the tensors that it reads or writes.
        inputs: filled by the caller before the first launch, and kept to the end: a plan can then be run again
            without filling them again.
        outputs: read by the caller after the last launch.
        rows: of the tensors that lie in images.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, names in enumerate(accesses):
        for name in names:
            first.setdefault(name, index)
            last[name] = index
    for name in inputs:
        first[name], last[name] = -1, len(accesses)
    for name in outputs:
        first.setdefault(name, len(accesses))
        last[name] = len(accesses)
    rows = rows or {}
    return tuple(Life(name, sizes[name], first[name], last[name], rows.get(name)) for name in first)


def largest_live_bytes(alive: Sequence[Life]) -> int:
    """The most bytes that are alive at one launch: no plan can do with less."""
    changes: Counter[int] = Counter()
    for life in alive:
        changes[life.first] += life.size
        changes[life.last + 1] -= life.size
    return max(itertools.accumulate(changes[launch] for launch in sorted(changes)), default=0)


def least_bytes(alive: Sequence[Life]) -> int:
    """What a plan of `plan_memory` takes at the least: images of different rows, and buffers, share nothing."""
    rows = dict.fromkeys(life.row for life in alive)
    return sum(largest_live_bytes([life for life in alive if life.row == row]) for row in rows)


def plan_memory(alive: Sequence[Life]) -> MemoryPlan:
    """A place for every tensor: the smallest of the greedy plans, never more than the tensors' sum."""
    orders = [order(alive) for order in (_by_size, _by_time, _by_breadth)]
    plan = MemoryPlan((), {})
    for row in dict.fromkeys(life.row for life in alive):
        # Whole buffers need no alignment: for a handful of tiny tensors they may take less than an arena.
        fits = (_arena, _whole_objects) if row is None else (_whole_objects,)
        found = [fit([life for life in order if life.row == row]) for fit in fits for order in orders]
        plan = _joined(plan, min(found, key=lambda candidate: candidate.total_bytes))
    return plan


def _by_size(alive: Sequence[Life]) -> list[Life]:
    """Largest first: what is hardest to place finds the most room."""
    return sorted(alive, key=lambda life: (-life.size, life.first, life.name))


def _by_time(alive: Sequence[Life]) -> list[Life]:
    """Earliest first: wins in long chains of growing tensors."""
    return sorted(alive, key=lambda life: (life.first, -life.size, life.name))


def _by_breadth(alive: Sequence[Life]) -> list[Life]:
    """The fullest launch's tensors first, largest of them first: the launch that sets the bound packs without gaps."""
    together = {at.first: [life for life in alive if life.first <= at.first <= life.last] for at in alive}
    order: dict[Life, None] = {}
    for _, tensors in sorted(together.items(), key=lambda item: (-sum(life.size for life in item[1]), item[0])):
        order |= dict.fromkeys(_by_size(tensors))
    return list(order)


def _arena(order: Sequence[Life]) -> MemoryPlan:
    """One buffer; each tensor at the lowest offset where nothing lies that is alive with it."""
    places: dict[str, Place] = {}
    placed: list[tuple[int, int, Life]] = []
    for life in order:
        offset = 0
        for start, end, other in placed:
            if life.overlaps(other):
                if start - offset >= life.size:
                    break
                offset = max(offset, end)
        places[life.name] = Place(0, offset)
        # Ends are rounded up, so that every gap begins where a part may.
        end = offset + -(-life.size // PART_ALIGNMENT) * PART_ALIGNMENT
        bisect.insort(placed, (offset, end, life), key=lambda item: item[:2])
    return MemoryPlan((max(places[life.name].offset + life.size for life in order),), places)


def _whole_objects(order: Sequence[Life]) -> MemoryPlan:
    """Each tensor into the free object that fits best: no growth if possible, then least waste. All rows are equal."""
    sizes: list[int] = []
    held: list[list[Life]] = []
    places: dict[str, Place] = {}
    for life in order:
        free = [i for i, residents in enumerate(held) if not any(life.overlaps(other) for other in residents)]
        if free:
            best = min(free, key=lambda i: (max(0, life.size - sizes[i]), sizes[i], i))
            sizes[best] = max(sizes[best], life.size)
            held[best].append(life)
        else:
            best = len(sizes)
            sizes.append(life.size)
            held.append([life])
        places[life.name] = Place(best)
    row = order[0].row
    return MemoryPlan(tuple(sizes), places, {} if row is None else dict.fromkeys(range(len(sizes)), row))


def _joined(first: MemoryPlan, second: MemoryPlan) -> MemoryPlan:
    """Both, the second's objects after the first's."""
    start = len(first.objects)
    moved = {name: Place(start + place.object, place.offset) for name, place in second.places.items()}
    rows = {**first.rows, **{start + number: row for number, row in second.rows.items()}}
    return MemoryPlan(first.objects + second.objects, {**first.places, **moved}, rows)
