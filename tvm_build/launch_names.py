"""What a layer's launches are called where Winograd's form makes several of one."""

from __future__ import annotations

TILES, SUMS, SHORTCUT = ":tiles", ":sums", ":shortcut"


def layer_of(launch: str) -> str:
    """The layer that a launch of this name computes, or computes a part of."""
    for part in (TILES, SUMS, SHORTCUT):
        launch = launch.removesuffix(part)
    return launch
