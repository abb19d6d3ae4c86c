"""Proves of a built runner what Android's dynamic linker asks of a program, before a phone ever sees it.

The rules follow bionic's linker and the NDK's build-system guide; each finding says which rule is broken and by what.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from device.android import elf
from device.android.elf import Elf, ElfError, Segment, read_elf
from device.android.symbols import StableSymbol, stable_symbols

MINIMUM_API_LEVEL = 26
"""Android 8.0: the first whose linker knows the PIE flag that today's linkers set; earlier ones warn on stdout."""

PAGE_BYTES = 16384
"""Pages of Android 15 devices; older ones have 4096."""

INTERPRETER = "/system/bin/linker64"

# AAELF64: ABS64, GLOB_DAT, JUMP_SLOT, RELATIVE. Not COPY, which bionic refuses in position-independent programs.
_RELOCATION_TYPES = {257, 1025, 1026, 1027}
_TLS_ALIGNMENT = 64  # bionic's own thread slots come first in an arm64 program's thread-local storage

Rule = Callable[[Elf, Mapping[str, StableSymbol]], Iterator[str]]


def audit(data: bytes, symbols: Mapping[str, StableSymbol] | None = None) -> list[str]:
    """What keeps `data` from being a program for Android arm64.

    Args:
        data: the bytes of the built program.
        symbols: what it may take from Android's libraries; None takes `symbols.txt`.

    Returns:
        one sentence per finding, in the order of the rules; empty when there is nothing to object to.
    """
    try:
        image = read_elf(data)
    except ElfError as error:
        return [str(error)]
    allowed = stable_symbols() if symbols is None else symbols
    return [finding for rule in _RULES for finding in rule(image, allowed)]


def _is_pie_for_arm64(image: Elf, _: Mapping[str, StableSymbol]) -> Iterator[str]:
    if image.machine != elf.EM_AARCH64:
        yield f"its machine is {image.machine}, expected {elf.EM_AARCH64} (AArch64)"
    if image.type != elf.ET_DYN or not (image.value(elf.DT_FLAGS_1) or 0) & elf.DF_1_PIE:
        yield "it is not marked as a position-independent executable"
    if image.interpreter != INTERPRETER:
        yield f"its interpreter is {image.interpreter}, expected {INTERPRETER}"
    code = [segment for segment in image.of_type(elf.PT_LOAD) if segment.flags & elf.PF_X]
    if not any(segment.address <= image.entry < segment.end for segment in code):
        yield f"its entry point {image.entry:#x} lies in no executable segment"


def _loads_on_16_kb_pages(image: Elf, _: Mapping[str, StableSymbol]) -> Iterator[str]:
    loads = image.of_type(elf.PT_LOAD)
    if not loads:
        yield "it has nothing to load"
    for segment in loads:
        where = f"the segment at {segment.address:#x}"
        if segment.align % PAGE_BYTES or segment.align == 0:
            yield f"{where} is aligned to {segment.align}, expected a multiple of {PAGE_BYTES}"
        elif (segment.address - segment.offset) % segment.align:
            yield f"{where} lies at file offset {segment.offset:#x}, which no page can map there"
        if segment.flags & elf.PF_W and segment.flags & elf.PF_X:
            yield f"{where} is both writable and executable"
    for before, after in itertools.pairwise(loads):
        if after.address // PAGE_BYTES * PAGE_BYTES < before.end:
            yield f"the segments at {before.address:#x} and {after.address:#x} share a page of {PAGE_BYTES} bytes"


def _is_hardened(image: Elf, _: Mapping[str, StableSymbol]) -> Iterator[str]:
    stacks = image.of_type(elf.PT_GNU_STACK)
    if len(stacks) != 1 or stacks[0].flags & elf.PF_X:
        yield "its stack is executable, or not said not to be"
    flags = image.value(elf.DT_FLAGS) or 0
    if image.value(elf.DT_TEXTREL) is not None or flags & elf.DF_TEXTREL:
        yield "it relocates its code (TEXTREL), which Android refuses to load"
    now = flags & elf.DF_BIND_NOW or (image.value(elf.DT_FLAGS_1) or 0) & elf.DF_1_NOW
    if not now and image.value(elf.DT_BIND_NOW) is None:
        yield "it does not ask for all symbols to be bound at start (BIND_NOW)"
    protected = image.of_type(elf.PT_GNU_RELRO)
    if len(protected) != 1:
        yield f"it has {len(protected)} segments to be protected after relocation (RELRO), expected one"
    for segment in protected:
        yield from _protects_whole_pages(image, segment)


def _protects_whole_pages(image: Elf, protected: Segment) -> Iterator[str]:
    """The linker rounds the range to pages: what shares a page with its ends becomes read-only, too."""
    start = protected.address // PAGE_BYTES * PAGE_BYTES
    end = -(-protected.end // PAGE_BYTES) * PAGE_BYTES
    for load in image.of_type(elf.PT_LOAD):
        before = load.address < protected.address and load.end > start
        after = load.end > protected.end and load.address < end
        if load.flags & elf.PF_W and (before or after):
            yield f"protecting [{protected.address:#x}, {protected.end:#x}) takes writable data on the same page along"


def _is_understood_by_old_linkers(image: Elf, _: Mapping[str, StableSymbol]) -> Iterator[str]:
    for tag, name in ((elf.DT_HASH, "DT_HASH"), (elf.DT_GNU_HASH, "DT_GNU_HASH")):
        if image.value(tag) is None:
            yield f"it has no {name} table"
    for tag, name in ((elf.DT_RELR, "DT_RELR"), (elf.DT_ANDROID_RELR, "DT_ANDROID_RELR")):
        if image.value(tag) is not None:
            yield f"its relocations are packed ({name}), which Android reads since API level 28 or later"
    for tag, name in ((elf.DT_RPATH, "DT_RPATH"), (elf.DT_RUNPATH, "DT_RUNPATH")):
        if image.value(tag) is not None:
            yield f"it brings its own library search path ({name})"
    unknown = sorted(set(image.relocation_types) - _RELOCATION_TYPES)
    if unknown:
        yield f"it has relocations of types {unknown}, expected only {sorted(_RELOCATION_TYPES)}"
    for segment in image.of_type(elf.PT_TLS):
        if segment.align < _TLS_ALIGNMENT:
            yield f"its thread-local storage is aligned to {segment.align}, expected at least {_TLS_ALIGNMENT}"


def _uses_stable_symbols_only(image: Elf, allowed: Mapping[str, StableSymbol]) -> Iterator[str]:
    undefined = [symbol.name for symbol in image.symbols if not symbol.defined]
    for name in undefined:
        if name not in allowed:
            yield f"it uses {name}, which is not on the list of Android's stable symbols"
        elif allowed[name].api_level > MINIMUM_API_LEVEL:
            yield f"it uses {name} of API level {allowed[name].api_level}, expected at most {MINIMUM_API_LEVEL}"
    libraries = {allowed[name].library for name in undefined if name in allowed}
    if sorted(image.needed) != sorted(libraries):
        needed = ", ".join(image.needed) or "no library"
        yield f"it needs {needed}; its symbols are those of {', '.join(sorted(libraries)) or 'no library'}"


_RULES: tuple[Rule, ...] = (
    _is_pie_for_arm64,
    _loads_on_16_kb_pages,
    _is_hardened,
    _is_understood_by_old_linkers,
    _uses_stable_symbols_only,
)
