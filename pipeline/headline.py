"""The table at the top of the README, from the records of the reference networks: no figure is typed by hand.

python -m pipeline.headline         # rewrites README.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.dense_baselines import DenseBaseline, best_dense_percent, list_baselines
from pipeline.reference_networks import Folder, list_networks
from pipeline.toml_config import read_toml
from pipeline.tuned_speed import read_tuned
from results.figures import KIND_LABEL, milliseconds, times
from results.markdown import markdown_table
from results.records import Latency, Result, read_result
from structadmm.errors import UserError
from structadmm.files import write_text

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- headline: made by `python -m pipeline.headline` -->\n"
END = "<!-- headline ends -->\n"
_HEADS = (
    "Model", "Top-1 % best dense -> pruned", "CONV params", "MACs",
    "Median ms (p10-p90)", "Speed-up (95 % interval of the median)", "Tuned", "Again with",
)  # fmt: skip


_TUNED = (
    "Tuned: with the fastest schedules that a search on the device has found, of both networks or of the dense one "
    "alone ([results](docs/reference-results.md#how-fast-they-are)); empty: no search was made, and the dense network "
    "may gain from one. Under what conditions is said there, too."
)
_OWN_START = (
    "\\* Held against its own start, which was trained for fewer epochs than the pruned network: there is no dense one "
    "that was trained for as many."
)
_SEARCHED_ALREADY = (
    "† Both networks with the schedules that `make demo` takes, from the tuning database that comes with the project: "
    "`structadmm deploy NAME --tuned DB`."
)


def headline(folders: Sequence[Folder]) -> str:
    """A row for each network, the most compressed first, and a line for each device that they were timed on."""
    baselines = [found.baseline for found in list_baselines()]
    rows = []
    searched = False
    timed: dict[str, list[str]] = {}
    for folder in sorted(folders, key=lambda folder: -folder.network.conv_params.ratio):
        result = read_result(folder.path / "result.json")
        tuned = read_tuned(folder)
        searched = searched or tuned is not None
        rows.append(_cells(folder, result, tuned, baselines))
        timed.setdefault(conditions(result), []).append(folder.name)
    lines = [markdown_table(_HEADS, rows)]
    cells = " ".join(cell for row in rows for cell in row)
    for wanted, note in ((searched, _TUNED), ("\\*" in cells, _OWN_START), ("†" in cells, _SEARCHED_ALREADY)):
        lines += ["", note] if wanted else []
    for said, names in timed.items():
        lines += ["", f"{', '.join(names)}: {said}"]
    return "\n".join(lines) + "\n"


def _cells(folder: Folder, result: Result, tuned: Result | None, baselines: Sequence[DenseBaseline]) -> list[str]:
    network, latency = folder.network, result.latency_ms
    low, high = latency.speedup.ci95
    dense = best_dense_percent(network, baselines)
    own_start = "" if any(found.serves(network) for found in baselines) else "\\*"
    searched_already = "†" if "tuned" in read_toml(folder.path / "config.toml").get("build", {}) else ""
    return [
        network.title,
        f"{dense:.2f}{own_start} -> {network.accuracy.pruned:.2f}",
        *(
            f"{counts.dense:,} -> {counts.pruned:,} ({times(counts.ratio)})"
            for counts in (network.conv_params, network.macs)
        ),
        f"{_spread(latency.baseline)} -> {_spread(latency.pruned)}",
        f"**{times(latency.speedup.median)}**{searched_already} ({low:.2f}-{high:.2f})",
        "" if tuned is None else _tuned(tuned),
        f"`structadmm deploy {folder.name}`",
    ]


def _tuned(result: Result) -> str:
    both = bool(result.environment["tuned"]["pruned"]["tuned"])
    return times(result.latency_ms.speedup.median) + ("" if both else " (dense alone)")


def _spread(latency: Latency) -> str:
    median, p10, p90 = (milliseconds(value).removesuffix(" ms") for value in (latency.median, latency.p10, latency.p90))
    return f"{median} ({p10}-{p90})"


def conditions(result: Result) -> str:
    """Where and when a result was measured, and what was noticed meanwhile."""
    environment, latency = result.environment, result.latency_ms
    device, state = environment["device"], environment["state"]["before"]
    load = "" if "load_average" not in state else f", load {state['load_average'][0]:g} before"
    return (
        f"**{KIND_LABEL[latency.kind]}**, {latency.device}, {device['compute_units']} compute units{load}; "
        f"{latency.baseline.samples} interleaved rounds; commit {_short(environment['commit'])}."
        + "".join(f" {warning[0].upper()}{warning[1:]}." for warning in latency.warnings)
    )


def _short(commit: str) -> str:
    digest, changed, _ = commit.partition("+")
    return digest[:10] + (" and changes" if changed else "")


def with_headline(text: str, table: str) -> str:
    """The README's text with `table` between its marks.

    Raises:
        UserError: the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {BEGIN.strip()!r} and {END.strip()!r}: put them around its table")
    return before + BEGIN + table + END + after


def main() -> None:
    """Rewrite the README."""
    write_text(README, with_headline(README.read_text(encoding="utf-8"), headline(list_networks())))


if __name__ == "__main__":
    main()
