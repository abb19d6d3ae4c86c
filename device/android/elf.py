"""Reads what the system's linker reads of a 64-bit little-endian ELF file: program headers and the dynamic section.

After the ELF-64 object file format and the System V gABI. Nothing in the file is trusted: every offset is checked, and
a file that contradicts itself raises `ElfError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

ET_DYN = 3
EM_AARCH64 = 183

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS = 1, 2, 3, 7
PT_GNU_STACK, PT_GNU_RELRO = 0x6474E551, 0x6474E552
PF_X, PF_W, PF_R = 1, 2, 4

DT_NEEDED, DT_PLTRELSZ, DT_HASH, DT_STRTAB, DT_SYMTAB = 1, 2, 4, 5, 6
DT_RELA, DT_RELASZ, DT_STRSZ, DT_SONAME, DT_RPATH = 7, 8, 10, 14, 15
DT_TEXTREL, DT_JMPREL, DT_BIND_NOW, DT_RUNPATH, DT_FLAGS = 22, 23, 24, 29, 30
DT_RELR, DT_ANDROID_RELR = 36, 0x6FFFE000
DT_GNU_HASH, DT_FLAGS_1 = 0x6FFFFEF5, 0x6FFFFFFB
DF_TEXTREL, DF_BIND_NOW = 4, 8
DF_1_NOW, DF_1_PIE = 1, 0x08000000

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")


class ElfError(Exception):
    """The bytes are no such ELF file, or contradict themselves."""


@dataclass(frozen=True)
class Segment:
    """A program header. Addresses are relative to where the program is loaded."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    align: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.memory_size


@dataclass(frozen=True)
class Symbol:
    """An entry of the dynamic symbol table."""

    name: str
    defined: bool


@dataclass(frozen=True)
class Elf:
    """An ELF file as the dynamic linker sees it.

    Attributes:
        type: `ET_DYN` for shared objects and position-independent executables.
        machine: `EM_AARCH64`, ...
        entry: address of the first instruction.
        segments: the program headers, in file order.
        interpreter: path of the dynamic linker, or None.
        tags: tag and value of every dynamic entry before the closing null, in file order.
        needed: names of the libraries it is linked against.
        soname: its own name as a library, or None.
        symbols: the dynamic symbols, without the null symbol.
        relocation_types: each relocation's type, in file order.
    """

    type: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]
    interpreter: str | None
    tags: tuple[tuple[int, int], ...]
    needed: tuple[str, ...]
    soname: str | None
    symbols: tuple[Symbol, ...]
    relocation_types: tuple[int, ...]

    def of_type(self, segment_type: int) -> list[Segment]:
        """The segments of one type."""
        return [segment for segment in self.segments if segment.type == segment_type]

    def value(self, tag: int) -> int | None:
        """The first dynamic entry with `tag`."""
        return next((value for found, value in self.tags if found == tag), None)


def read_elf(data: bytes) -> Elf:
    """Read an ELF file.

    Raises:
        ElfError: `data` is not a 64-bit little-endian ELF file with a dynamic section, or is damaged.
    """
    if data[:7] != b"\x7fELF\x02\x01\x01":
        raise ElfError("it is not a 64-bit little-endian ELF file")
    _, kind, machine, _, entry, table, _, _, _, entry_size, count, *_ = _unpack(_HEADER, data, 0, "ELF header")
    if entry_size != _PROGRAM_HEADER.size:
        raise ElfError(f"its program headers have {entry_size} bytes, expected {_PROGRAM_HEADER.size}")
    segments = []
    for i in range(count):
        header = _unpack(_PROGRAM_HEADER, data, table + i * _PROGRAM_HEADER.size, "program header")
        segment_type, flags, offset, address, _, file_size, memory_size, align = header
        segments.append(Segment(segment_type, flags, offset, address, file_size, memory_size, align))
    return _Image(data, tuple(segments)).read(kind, machine, entry)


def _unpack(layout: struct.Struct, data: bytes, offset: int, what: str) -> tuple[int, ...]:
    if offset < 0 or offset + layout.size > len(data):
        raise ElfError(f"its {what} lies beyond the end of the file")
    return layout.unpack_from(data, offset)


@dataclass(frozen=True)
class _Image:
    """The bytes with the map from addresses to file offsets."""

    data: bytes
    segments: tuple[Segment, ...]

    def read(self, kind: int, machine: int, entry: int) -> Elf:
        tags = tuple(self._tags())
        first = dict(reversed(tags))
        strings = self._bytes(first.get(DT_STRTAB), first.get(DT_STRSZ, 0), "string table")
        relocations = [
            *self._relocation_types(first.get(DT_RELA), first.get(DT_RELASZ, 0)),
            *self._relocation_types(first.get(DT_JMPREL), first.get(DT_PLTRELSZ, 0)),
        ]
        soname = first.get(DT_SONAME)
        return Elf(
            type=kind,
            machine=machine,
            entry=entry,
            segments=self.segments,
            interpreter=self._interpreter(),
            tags=tags,
            needed=tuple(_text(strings, value) for tag, value in tags if tag == DT_NEEDED),
            soname=None if soname is None else _text(strings, soname),
            symbols=tuple(self._symbols(first, strings)),
            relocation_types=tuple(relocations),
        )

    def _tags(self) -> Iterator[tuple[int, int]]:
        dynamic = [segment for segment in self.segments if segment.type == PT_DYNAMIC]
        if len(dynamic) != 1:
            raise ElfError(f"it has {len(dynamic)} dynamic segments, expected one")
        start = dynamic[0].offset
        for offset in range(start, start + min(dynamic[0].file_size, len(self.data)), _DYNAMIC.size):
            tag, value = _unpack(_DYNAMIC, self.data, offset, "dynamic section")
            if tag == 0:
                return
            yield tag, value
        raise ElfError("its dynamic section has no end")

    def _interpreter(self) -> str | None:
        for segment in self.segments:
            if segment.type == PT_INTERP:
                if segment.offset + segment.file_size > len(self.data):
                    raise ElfError("its interpreter's name lies beyond the end of the file")
                return _text(self.data[segment.offset : segment.offset + segment.file_size], 0)
        return None

    def _symbols(self, first: dict[int, int], strings: bytes) -> Iterator[Symbol]:
        """The table's length is not stored: DT_HASH has one chain entry for each symbol."""
        if DT_HASH not in first:
            return
        _, count = struct.unpack("<II", self._bytes(first[DT_HASH], 8, "hash table"))
        table = self._bytes(first.get(DT_SYMTAB), count * _SYMBOL.size, "symbol table")
        for name, _, _, section, _, _ in list(_SYMBOL.iter_unpack(table))[1:]:
            yield Symbol(_text(strings, name), defined=section != 0)

    def _relocation_types(self, address: int | None, size: int) -> list[int]:
        if size == 0:
            return []
        if size % _RELOCATION.size:
            raise ElfError(f"its relocations have {size} bytes, expected a multiple of {_RELOCATION.size}")
        table = self._bytes(address, size, "relocation table")
        return [info & 0xFFFFFFFF for _, info, _ in _RELOCATION.iter_unpack(table)]

    def _bytes(self, address: int | None, size: int, what: str) -> bytes:
        if address is None:
            raise ElfError(f"it has no {what}")
        for segment in self.segments:
            within = address - segment.address
            if segment.type != PT_LOAD or within < 0 or within + size > segment.file_size:
                continue
            start = segment.offset + within
            if start + size <= len(self.data):
                return self.data[start : start + size]
        raise ElfError(f"its {what} at {address:#x} lies in no loaded part of the file")


def _text(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset)
    if end < 0:
        raise ElfError(f"its string at {offset:#x} has no end")
    return strings[offset:end].decode("ascii", "backslashreplace")
