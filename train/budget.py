"""How much of each layer a round removes: one uniform rate, or rates by layer name pattern."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping

from structadmm.errors import UserError


class Rates:
    """The sparsity that a round asks of each layer.

    Args:
        sparsity: one fraction for all layers, or fractions by layer name pattern; the first that matches counts.
        layers: names of all layers that can be named.

    Raises:
        UserError: a pattern matches no layer.
    """

    def __init__(self, sparsity: float | Mapping[str, float], layers: Iterable[str]) -> None:
        self._sparsity = sparsity
        if not isinstance(sparsity, Mapping):
            return
        names = list(layers)
        for pattern in sparsity:
            if not fnmatch.filter(names, pattern):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
                raise UserError(
                    f"sparsity names {pattern!r}, which matches no layer: use names such as {', '.join(near)}"
                )

    @property
    def uniform(self) -> bool:
        """One rate for all layers: exclusions apply."""
        return not isinstance(self._sparsity, Mapping)

    def of_layer(self, layer: str) -> float | None:
        """The layer's rate, or None if no pattern names it."""
        if not isinstance(self._sparsity, Mapping):
            return self._sparsity
        return first_match(self._sparsity, layer)

    def of_group(self, layers: Iterable[str], name: str = "") -> float | None:
        """The common rate of coupled layers; layers that no pattern names follow the others.

        Args:
            layers: whose filters the group consists of.
            name: of the group; a rate for exactly this name counts before those of the layers. A layer whose output is
                split has several groups.

        Raises:
            UserError: two of the layers are given different rates.
        """
        if isinstance(self._sparsity, Mapping) and name in self._sparsity:
            return self._sparsity[name]
        given = {layer: rate for layer in layers if (rate := self.of_layer(layer)) is not None}
        if len(set(given.values())) > 1:
            told = ", ".join(f"{layer} = {rate}" for layer, rate in given.items())
            raise UserError(f"these layers share their filters and need one sparsity: {told}")
        return next(iter(given.values()), None)


def first_match(patterns: Mapping[str, float], layer: str) -> float | None:
    """The value of the first pattern that matches `layer`, or None."""
    return next((value for pattern, value in patterns.items() if fnmatch.fnmatchcase(layer, pattern)), None)


def keep_count(alive: int, sparsity: float, multiple: int = 1) -> int:
    """Units that stay when `sparsity` of `alive` is removed: at least one, rounded to the nearest unit.

    With a `multiple`, the count is rounded up to it as far as units are alive: the rest of a texel is computed anyway.
    """
    keep = max(1, math.floor(alive * (1 - sparsity) + 0.5))
    return min(alive, -(-keep // multiple) * multiple)
