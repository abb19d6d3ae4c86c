"""Proof that no tensor is lost: every launch finds what it reads, whatever planned the memory.

The launches are played on a map of memory that knows whose each byte is. A tensor takes its bytes at the first launch
that touches it, from whoever had them; at every later one they must still be its own, to the last byte. The planner's
lives and offsets are not asked, only the memory objects of the finished plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from structadmm.errors import InvariantError
from tvm_build.launch_plan import Buffer, Image1dBuffer, Image2d, Memory, Part
from tvm_build.memory_plan import ImageRow


def check_memory(
    memory: Sequence[Memory],
    object_of: Mapping[str, int],
    sizes: Mapping[str, int],
    accesses: Sequence[Iterable[str]],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
    rows: Mapping[str, ImageRow] | None = None,
    read_as_image: Iterable[tuple[str, int]] = (),
) -> None:
    """Prove that each tensor fits where it lies, and is not overwritten between the launches that touch it.

    Two tensors of one launch then have no byte in common either: OpenCL leaves undefined what a kernel does that writes
    to a part of a buffer that overlaps another of its arguments.

    Args:
        memory: the plan's memory objects.
        object_of: the number of each tensor's memory object.
        sizes: bytes by tensor.
        accesses: for each launch, the tensors that it reads or writes.
        inputs: there before the first launch, and kept to the end: a plan can be run again.
        outputs: read after the last launch.
        rows: of the tensors that lie in images.
        read_as_image: tensors in buffers, each with the number of an image that a launch reads it through.

    Raises:
        InvariantError: a tensor does not fit, is overwritten while it is needed, lies in the wrong kind of memory, or
            is read through an image of something else.
    """
    for name, number in read_as_image:
        image = memory[number]
        ours = isinstance(image, Image1dBuffer) and image.buffer == object_of.get(name) and image.size == sizes[name]
        if not ours:
            raise InvariantError(
                f"tensor {name} of {sizes[name]} bytes in memory object {object_of.get(name)} is read through {image}"
            )
    owners = _Owners()
    inputs = tuple(inputs)
    steps = [inputs, *map(tuple, accesses), (*inputs, *outputs)]
    for number, names in enumerate(steps):
        for name in names:
            if name not in owners.extents:
                row = None if rows is None else rows.get(name)
                owners.take(name, _extent(name, sizes[name], row, memory, object_of.get(name)))
        for name in names:
            if (thief := owners.thief(name)) is not None:
                when = "at the end" if number == len(accesses) + 1 else f"at launch {number - 1}"
                raise InvariantError(f"tensors {name} and {thief} share memory while both are alive, {when}")


@dataclass(frozen=True)
class _Extent:
    """The bytes [start, end) of an object that is allocated."""

    object: int
    start: int
    end: int


def _extent(name: str, size: int, row: ImageRow | None, memory: Sequence[Memory], number: int | None) -> _Extent:
    """What a tensor occupies."""
    if number is None or not 0 <= number < len(memory):
        raise InvariantError(f"tensor {name} has no memory")
    held = memory[number]
    if size > held.size:
        raise InvariantError(f"tensor {name} needs {size} bytes, memory object {number} has {held.size}")
    if row is not None:
        if not isinstance(held, Image2d) or (held.width, held.format) != (row.width, row.format):
            raise InvariantError(f"tensor {name} lies in rows of {row}, memory object {number} is {held}")
        if size % row.size:
            raise InvariantError(f"tensor {name} of {size} bytes is no whole number of rows of {row.size} bytes")
        return _Extent(number, 0, size)
    if isinstance(held, Buffer):
        return _Extent(number, 0, size)
    if not isinstance(held, Part):
        raise InvariantError(f"tensor {name} lies in a buffer, memory object {number} is {held}")
    buffer = memory[held.buffer]
    if not isinstance(buffer, Buffer) or held.offset < 0 or held.offset + held.size > buffer.size:
        raise InvariantError(f"memory object {number} is {held}, which does not lie in {buffer}")
    return _Extent(held.buffer, held.offset, held.offset + size)


class _Owners:
    """Whose content each byte of each memory object is."""

    def __init__(self) -> None:
        self.extents: dict[str, _Extent] = {}
        self.held: dict[int, list[tuple[int, int, str]]] = {}

    def take(self, name: str, extent: _Extent) -> None:
        """Give `name` its bytes; what others had of them is theirs no more."""
        left = []
        for first, last, owner in self.held.get(extent.object, []):
            remaining = ((first, min(last, extent.start)), (max(first, extent.end), last))
            left += [(a, b, owner) for a, b in remaining if a < b]
        self.held[extent.object] = [*left, (extent.start, extent.end, name)]
        self.extents[name] = extent

    def thief(self, name: str) -> str | None:
        """Who has a byte of what `name` took, if it is not `name`."""
        extent = self.extents[name]
        for first, last, owner in self.held[extent.object]:
            if owner != name and first < extent.end and extent.start < last:
                return owner
        return None
