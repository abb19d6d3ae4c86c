"""The audit of the Android runner: nothing to object to in what is built, and each rule broken by hand is found."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from device.android.audit import audit
from device.android.elf import DT_SONAME, ElfError, read_elf
from device.android.symbols import SYMBOLS_FILE, stable_symbols
from device.runner_build import build_runner
from structadmm.errors import InvariantError

LOAD, INTERP, STACK, RELRO = 1, 3, 0x6474E551, 0x6474E552
NEEDED, HASH, RELA, DEBUG, FLAGS = 1, 4, 7, 21, 30
TEXTREL, RUNPATH, RELR, GNU_HASH, FLAGS_1 = 22, 29, 36, 0x6FFFFEF5, 0x6FFFFFFB
UNKNOWN = 0x6FFFFD00


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANDROID_NDK_HOME", raising=False)
        return build_runner("arm64-v8a").read_bytes()


class Patched:
    """Changes fields of an ELF file in place, found with arithmetic of its own and not with the reader under test."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def header(self, segment_type: int, index: int = 0) -> int:
        [start] = struct.unpack_from("<Q", self.data, 32)
        [count] = struct.unpack_from("<H", self.data, 56)
        places = [start + 56 * i for i in range(count)]
        return [at for at in places if struct.unpack_from("<I", self.data, at) == (segment_type,)][index]

    def dynamic(self, tag: int) -> int:
        at = struct.unpack_from("<Q", self.data, self.header(2) + 8)[0]
        while struct.unpack_from("<Q", self.data, at)[0] != tag:
            at += 16
        return int(at)

    def put(self, layout: str, at: int, value: int) -> None:
        struct.pack_into(layout, self.data, at, value)

    def rename(self, old: bytes, new: bytes) -> None:
        assert len(old) == len(new)
        assert self.data.count(old) == 1
        self.data[:] = self.data.replace(old, new)


def segment_flags(elf: Patched, segment_type: int, flags: int, index: int = 0) -> None:
    elf.put("<I", elf.header(segment_type, index) + 4, flags)


def lazy(elf: Patched) -> None:
    elf.put("<Q", elf.dynamic(FLAGS) + 8, 0)
    elf.put("<Q", elf.dynamic(FLAGS_1) + 8, 0x08000000)


def short_relro(elf: Patched) -> None:
    at = elf.header(RELRO) + 40
    [size] = struct.unpack_from("<Q", elf.data, at)
    elf.put("<Q", at, size // 2)


def copy_relocation(elf: Patched) -> None:
    # The first segment is loaded from the file's start to address 0: addresses in it are file offsets.
    [table] = struct.unpack_from("<Q", elf.data, elf.dynamic(RELA) + 8)
    elf.put("<Q", table + 8, 1024)


def shared_page(elf: Patched) -> None:
    at = elf.header(LOAD, 0) + 40
    elf.put("<Q", at, 0x9000)


BROKEN: dict[str, tuple[Callable[[Patched], None], str]] = {
    "another machine": (lambda elf: elf.put("<H", 18, 62), "its machine is 62"),
    "not relocatable": (lambda elf: elf.put("<H", 16, 2), "not marked as a position-independent"),
    "no PIE flag": (lambda elf: elf.put("<Q", elf.dynamic(FLAGS_1) + 8, 1), "not marked as a position-independent"),
    "interpreter": (lambda elf: elf.rename(b"/system/bin/linker64", b"/system/bin/linker32"), "its interpreter is"),
    "no interpreter": (lambda elf: elf.put("<I", elf.header(INTERP), UNKNOWN), "its interpreter is None"),
    "entry point": (lambda elf: elf.put("<Q", 24, 0x40), "its entry point 0x40 lies in no executable segment"),
    "4 KB pages": (lambda elf: elf.put("<Q", elf.header(LOAD, 1) + 48, 4096), "is aligned to 4096"),
    "file offset": (lambda elf: elf.put("<Q", elf.header(LOAD, 3) + 8, 64), "which no page can map there"),
    "writable code": (lambda elf: segment_flags(elf, LOAD, 7, 1), "both writable and executable"),
    "shared page": (shared_page, "share a page of 16384 bytes"),
    "executable stack": (lambda elf: segment_flags(elf, STACK, 7), "its stack is executable"),
    "unsaid stack": (lambda elf: elf.put("<I", elf.header(STACK), UNKNOWN), "its stack is executable"),
    "no RELRO": (lambda elf: elf.put("<I", elf.header(RELRO), UNKNOWN), "it has 0 segments to be protected"),
    "RELRO ends inside a page": (short_relro, "takes writable data on the same page along"),
    "TEXTREL": (lambda elf: elf.put("<Q", elf.dynamic(DEBUG), TEXTREL), "it relocates its code"),
    "lazy binding": (lazy, "bound at start"),
    "no DT_HASH": (lambda elf: elf.put("<Q", elf.dynamic(HASH), UNKNOWN), "it has no DT_HASH"),
    "no DT_GNU_HASH": (lambda elf: elf.put("<Q", elf.dynamic(GNU_HASH), UNKNOWN), "it has no DT_GNU_HASH"),
    "packed relocations": (lambda elf: elf.put("<Q", elf.dynamic(DEBUG), RELR), "its relocations are packed"),
    "search path": (lambda elf: elf.put("<Q", elf.dynamic(DEBUG), RUNPATH), "its own library search path"),
    "copy relocation": (copy_relocation, "relocations of types [1024]"),
    "unlisted symbol": (lambda elf: elf.rename(b"\0qsort\0", b"\0qsorr\0"), "it uses qsorr, which is not on the list"),
    "missing library": (lambda elf: elf.put("<Q", elf.dynamic(NEEDED), UNKNOWN), "it needs libdl.so; its symbols are"),
}


def test_the_built_runner_passes(built: bytes) -> None:
    assert audit(built) == []


def test_the_built_runner_needs_libc_and_libdl_and_nothing_else(built: bytes) -> None:
    elf = read_elf(built)
    assert sorted(elf.needed) == ["libc.so", "libdl.so"]
    undefined = {symbol.name for symbol in elf.symbols if not symbol.defined}
    assert {"__libc_init", "__errno", "dlopen", "malloc"} <= undefined <= set(stable_symbols())


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_rule_is_found(built: bytes, name: str) -> None:
    break_it, expected = BROKEN[name]
    elf = Patched(built)
    break_it(elf)
    assert any(expected in finding for finding in audit(bytes(elf.data))), audit(bytes(elf.data))


def test_a_symbol_newer_than_the_oldest_supported_android_is_found(built: bytes) -> None:
    symbols = stable_symbols()
    symbols["qsort"] = replace(symbols["qsort"], api_level=36)
    assert audit(built, symbols) == ["it uses qsort of API level 36, expected at most 26"]


def test_a_library_that_no_symbol_comes_from_is_found(built: bytes) -> None:
    symbols = {name: replace(symbol, library="libc.so") for name, symbol in stable_symbols().items()}
    assert audit(built, symbols) == ["it needs libc.so, libdl.so; its symbols are those of libc.so"]


def test_damaged_files_end_in_findings_and_never_in_an_exception(built: bytes) -> None:
    generator = random.Random(0)
    for _ in range(600):
        data = bytearray(built[: generator.choice([len(built), generator.randrange(len(built))])])
        # The tables that the reader follows lie in the first part of the file.
        for _ in range(generator.randrange(1, 9)):
            if data:
                data[generator.randrange(min(len(data), 6144))] = generator.randrange(256)
        assert isinstance(audit(bytes(data)), list)


@pytest.mark.parametrize("length", [0, 4, 63, 64, 600])
def test_a_file_that_ends_before_its_tables_is_refused(built: bytes, length: int) -> None:
    with pytest.raises(ElfError):
        read_elf(built[:length])
    assert len(audit(built[:length])) == 1


def test_the_reader_agrees_with_binutils(built: bytes, tmp_path: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf (apt-get install binutils)")
    path = tmp_path / "runner"
    path.write_bytes(built)
    said = subprocess.run([readelf, "-W", "-d", "-l", "--dyn-syms", path], capture_output=True, text=True, check=True)
    lines = [line.split() for line in said.stdout.splitlines()]
    elf = read_elf(built)
    assert elf.value(DT_SONAME) is None
    assert [fields[-1].strip("[]") for fields in lines if "(NEEDED)" in fields] == list(elf.needed)
    assert [fields[7] for fields in lines if len(fields) == 8 and fields[6] == "UND"] == [
        symbol.name for symbol in elf.symbols if not symbol.defined
    ]
    loads = [tuple(int(text, 16) for text in fields[1:3]) for fields in lines if fields[:1] == ["LOAD"]]
    assert loads == [(segment.offset, segment.address) for segment in elf.of_type(LOAD)]


def test_the_list_of_symbols_is_sound() -> None:
    symbols = stable_symbols()
    assert {symbol.library for symbol in symbols.values()} == {"libc.so", "libdl.so"}
    assert all(21 <= symbol.api_level <= 26 for symbol in symbols.values())
    assert not {"stdin", "stdout", "stderr"} & set(symbols)


@pytest.mark.parametrize("line", ["libc.so malloc", "libc.so malloc 21", "libc.so  free2 21", "libc.so free2 x"])
def test_a_line_of_the_list_that_is_damaged_or_comes_twice_is_refused(tmp_path: Path, line: str) -> None:
    damaged = tmp_path / "symbols.txt"
    damaged.write_text(f"{SYMBOLS_FILE.read_text()}{line}\n")
    with pytest.raises(InvariantError, match=r"expected a new `LIBRARY SYMBOL LEVEL`"):
        stable_symbols(damaged)
