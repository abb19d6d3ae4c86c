"""The symbols of Android's libraries that the runner may use: read from `symbols.txt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from structadmm.errors import InvariantError

SYMBOLS_FILE = Path(__file__).parent / "symbols.txt"


@dataclass(frozen=True)
class StableSymbol:
    """A symbol that every Android from `api_level` on exports, and will.

    Attributes:
        library: soname of the library that has it.
        name: the symbol.
        api_level: the first Android API level with it on arm64.
    """

    library: str
    name: str
    api_level: int


def stable_symbols(path: Path = SYMBOLS_FILE) -> dict[str, StableSymbol]:
    """The list, by symbol name, in the order of the file.

    Raises:
        InvariantError: a line is not `LIBRARY SYMBOL LEVEL`, or a symbol comes twice.
    """
    symbols: dict[str, StableSymbol] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        fields = line.split(" ")
        if len(fields) != 3 or not fields[2].isdigit() or fields[1] in symbols:
            raise InvariantError(f"{path.name}:{number}: expected a new `LIBRARY SYMBOL LEVEL`, found {line!r}")
        symbols[fields[1]] = StableSymbol(fields[0], fields[1], int(fields[2]))
    return symbols
