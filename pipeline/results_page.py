"""The results page: our networks beside the published ones, with every figure from a committed record.

python -m pipeline.results_page             # rewrites docs/reference-results.md and its plots
python -m pipeline.results_page --predict   # before that, the predictions anew
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.attempts import AttemptFolder, list_attempts
from pipeline.dense_baselines import BaselineFolder, best_dense_percent, list_baselines
from pipeline.headline import conditions
from pipeline.predictions import Prediction, predict, read_prediction
from pipeline.progress import console_reporter
from pipeline.published import PUBLISHED, Published
from pipeline.reference_networks import Folder, list_networks
from pipeline.toml_config import read_toml
from pipeline.tuned_speed import read_tuned
from results.figures import KIND_LABEL, milliseconds, times
from results.markdown import markdown_table
from results.records import Result, read_result
from results.trade_off import Point, plot_trade_off
from structadmm.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
PAGE = "reference-results.md"
ACCURACY_PLOT, LATENCY_PLOT = "images/accuracy-over-compression.svg", "images/speed-up-over-compression.svg"
AGAIN = "python -m pipeline.results_page"


@dataclass(frozen=True)
class Entry:
    """A network of ours and what is known about it.

    Attributes:
        folder: where it lies.
        result: of the run that made it.
        prediction: for a phone.
        tuned: of both networks with tuned schedules, where that was measured.
        held_against: top-1 accuracy of the best dense network, percent.
        has_peer: whether that was trained for as many epochs as the pruned one; else it is what pruning started from.
    """

    folder: Folder
    result: Result
    prediction: Prediction
    tuned: Result | None
    held_against: float
    has_peer: bool


def read_entries() -> list[Entry]:
    """All reference networks, the most compressed of each data set last.

    Raises:
        UserError: a record is absent or damaged.
    """
    baselines = [folder.baseline for folder in list_baselines()]
    entries = [
        Entry(
            folder,
            read_result(folder.path / "result.json"),
            read_prediction(folder),
            read_tuned(folder),
            best_dense_percent(folder.network, baselines),
            any(baseline.serves(folder.network) for baseline in baselines),
        )
        for folder in list_networks()
    ]
    return sorted(entries, key=lambda entry: (entry.folder.network.data.name, entry.result.conv_params.ratio))


def page(entries: Sequence[Entry], baselines: Sequence[BaselineFolder], attempts: Sequence[AttemptFolder]) -> str:
    """The page as Markdown."""
    sizes = markdown_table(
        (
            *("network", "top-1 % dense -> pruned", "over the best dense network", "CONV parameters"),
            *("all parameters", "MACs", "again with"),
        ),
        map(_sizes, entries),
    )
    dense = markdown_table(("network", "epochs", "top-1 %", "again with"), map(_baseline, baselines))
    tried = markdown_table(("run", "CONV parameters", "epochs", "top-1 %", "what it taught"), map(_attempt, attempts))
    speeds = markdown_table(
        (
            *("network", "measured on", "ms dense -> pruned", "speed-up"),
            *("predicted for", "predicted ms dense -> pruned", "predicted speed-up"),
        ),
        map(_times, entries),
    )
    tuned = markdown_table(
        ("network, tuned", "measured on", "ms dense -> pruned", "speed-up", "launches tuned"),
        [_tuned(entry.folder.name, entry.tuned) for entry in entries if entry.tuned is not None],
    )
    published = markdown_table(
        ("network", "CONV parameters", "MACs", "top-1 % dense -> pruned", "speed-up", "source"),
        map(_published, PUBLISHED),
    )
    parts = [
        *(_INTRODUCTION, "## Our networks", sizes, _notes(entries)),
        *((_DENSE, dense) if baselines else ()),
        *((_TRIED, tried) if attempts else ()),
        *(_SPEED, speeds, *([tuned] if any(entry.tuned for entry in entries) else []), _conditions(entries)),
        f"![Speed-up over compression]({LATENCY_PLOT})",
        *("## What others report", published, f"![Accuracy over compression]({ACCURACY_PLOT})"),
        _COMPARABLE,
    ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = f"""# Results beside the published ones

<!-- Made by `{AGAIN}`; do not edit. -->

Every figure in the tables is read from a record in `results/reference/`, and a test compares this page with them; what
the paragraphs say beyond that was measured by hand where they say so. The command in the last column counts accuracies
anew, on the images that are named below; `structadmm run config.toml`, with the configuration in a network's folder,
trains such a network again: not the same one, since budgets are spread a little otherwise now
([reproducing-cifar10.md](reproducing-cifar10.md#2-pruning))."""

_DENSE = """### The dense networks that they are held against

ResNet-18, trained on the same images by the same code, without distillation; two for at least as many epochs in all as
any pruned network and the one that it started from, one of these on blends of two images as the pruned ones are. The
best counts, and pruning is charged with what blends are worth. Recipes and histories are kept; weights are large. The
one on blends goes on from the 80 epochs: train these first. `train.data.root` says where the images lie.
VGG-16 and AlexNet are held against the dense network that was pruned: 80 epochs, to which pruning adds 50."""

_TRIED = """### What else was tried, and what is missing

The aims on CIFAR-10 are at most 0.6 points under the best dense network at 54.2 times fewer CONV parameters, and 0.1 at
ten times; the table above says how far off they are. What should close the distance:

- At ten times, a longer last retraining (78 epochs here, hundreds in the published schedules), distilled from the dense
  network that was trained on blends, which is better than the one that pruning starts from
  (`configs/resnet18_cifar10_10x_longer.toml`, not carried to the end).
- At 55 times, perhaps work rather than epochs. Its loss on the training images stays twice that of the network of ten
  times. Three ways to the same number of parameters, with 28 to 44 million multiply-accumulates, end within 0.8 points
  of each other, the one with the fewest last, and the one with four times as many epochs, distilled on blends, 0.3
  points before the next: single runs that differ in several ways at once, so a guess and no finding. More
  multiply-accumulates for the same parameters cost speed, of which none is to spare: against the tuned dense network
  the aim of 7.6 times is not met on the host, nor by the predictions on a phone.
- Not tried to the end: columns allotted to early layers beyond what their sensitivity says. Sensitivities times
  (positions that use a weight) to the power of 0.6 gave 57 instead of 31 million multiply-accumulates, and 83.7 instead
  of 84.2 % after three epochs of retraining (by hand, once each), which is too early to tell.

For scale: the published network of 59.84 times fewer parameters is 0.6 points under a dense one of 93.79 %;
[others](https://github.com/afzalxo/ResNet-Simplified-Pytorch) train the same architecture on the original images, all
50,000 of them, to 95.43 % in the best epoch, which compares with nothing here. The better the dense network, the harder
the aim; ours is the best of three.

Below are runs that became no reference network, by the code of their day; accuracies are those of the exported network,
or, with a star, of the last epoch in the precision of training."""

_SPEED = """## How fast they are

Measured times are medians over interleaved rounds, with the 95 % interval of their ratio over these;
`structadmm deploy NAME` measures both networks again, with `--device` on a phone. Schedules are the cost model's, those
of the network of digits tuned as `make demo` does. The second table has the fastest schedules that a search on the
device has found and settled in the network ([tuning](tuning.md)), for as many launches as it says. The two tables were
measured in different hours, in which this host is not equally fast: milliseconds compare within a row and not between
rows. What tuning gains was measured for itself, both forms of a network in turns (by hand, `structadmm tuned settle`,
four times on the host): the dense ResNet-18 becomes 1.3 to 1.5 times as fast and the dense VGG-16 1.3 times, by
Winograd's forms, which column-sparse layers have not, and the dense AlexNet 1.09 times; the pruned networks stay within
3 % of what they are untuned, in 150 trials each, 350 for the one of 55x. Predicted times are by the
[cost model](cost-model.md), each believed within the factor that is given; **none of these was measured on a
phone**."""

_COMPARABLE = """## What can be compared, and what cannot

- **Compression**: CONV parameters are counted as the StructADMM paper counts them, weights of convolutions that are
  kept, without the indices that say where they belong; all parameters and multiply-accumulates are beside them.
- **Accuracy**: only of the same images, which are named above. Ours is that of the last epoch, of pruned networks and
  of those that they are held against by ONNX Runtime on the exported file; of dense networks left of an arrow as it was
  counted in the precision of training, a few images off. Published ones may be those of the best epoch.
- **Training**: a pruned network may gain from nothing but the epochs that pruning takes. For ResNet-18 on CIFAR-10 a
  dense network is therefore trained for as many in all ([reproducing-cifar10.md](reproducing-cifar10.md)), and the
  difference in the table is from that one. The others are held against the network that was pruned, which the table
  says: VGG-16 and AlexNet with 50 epochs less, that of digits with 20.
- **Latency**: published speed-ups divide by dense networks of other compilers on other devices, and a slow dense
  network makes a fine ratio. Both of ours are compiled and timed alike, with kernels of ours, scheduled by the cost
  model, which is what one has without a search on the device; the second table has what a search makes of it. Intervals
  are of the rounds of one process: between processes and hours of this machine a ratio moves by more. Of five
  measurements of the tuned network of 55x within ten minutes, three were 6.9 to 7.0, one 7.2 and one 5.5 (by hand).
  Host figures say nothing about a phone."""


def accuracy_points(entries: Sequence[Entry]) -> list[Point]:
    """Points of accuracy that pruning gained or cost, for each network that says so."""
    points = [
        Point(
            "ours",
            entry.folder.name,
            entry.result.conv_params.ratio,
            entry.folder.network.accuracy.pruned - entry.held_against,
        )
        for entry in entries
    ]
    return points + [
        Point("published", row.network, row.conv_reduction, row.pruned - row.dense)
        for row in PUBLISHED
        if row.conv_reduction is not None and row.pruned is not None and row.dense is not None
    ]


def speed_points(entries: Sequence[Entry]) -> list[Point]:
    """Times faster: measured, predicted, and published with what it was measured on."""
    points = []
    for entry in entries:
        name, ratio, latency = entry.folder.name, entry.result.conv_params.ratio, entry.result.latency_ms
        low, high = latency.speedup.ci95
        points.append(Point(f"ours, {KIND_LABEL[latency.kind]}", name, ratio, latency.speedup.median, low, high))
        if entry.tuned is not None:
            tuned = entry.tuned.latency_ms
            low, high = tuned.speedup.ci95
            of = f"ours, tuned, {KIND_LABEL[tuned.kind]}"
            points.append(Point(of, name, ratio, tuned.speedup.median, low, high))
        predicted = entry.prediction
        points.append(
            Point(f"ours, predicted for {predicted.target}, {predicted.dtype}", name, ratio, predicted.speed_up)
        )
    return points + [
        Point("published", f"{row.network}, {row.device}", row.conv_reduction, row.speed_up)
        for row in PUBLISHED
        if row.conv_reduction is not None and row.speed_up is not None
    ]


def _sizes(entry: Entry) -> tuple[str, ...]:
    network, name = entry.folder.network, entry.folder.name
    # A note says that the images are not those that the data set's name stands for.
    elsewhere = " --data-root FOLDER --no-verify" if network.data.note else ""
    return (
        f"[{network.title}](../results/reference/networks/{name})",
        f"{network.accuracy.dense:.2f} -> {network.accuracy.pruned:.2f}",
        f"{network.accuracy.pruned - entry.held_against:+.2f} points"
        + ("" if entry.has_peer else ", over its own start"),
        *(
            f"{counts.dense:,} -> {counts.pruned:,} ({times(counts.ratio)})"
            for counts in (network.conv_params, network.params, network.macs)
        ),
        f"`structadmm evaluate results/reference/networks/{name}/pruned.onnx --data {network.data.name}{elsewhere}`",
    )


def _baseline(folder: BaselineFolder) -> tuple[str, ...]:
    baseline, where = folder.baseline, f"results/reference/baselines/{folder.path.name}"
    name = read_toml(folder.path / "config.toml")["name"]  # of the run that configurations of networks start from
    return (
        f"[{baseline.title}](../{where})",
        str(baseline.epochs),
        f"{baseline.percent:.2f}",
        f"`structadmm train runs/{name} --config {where}/config.toml --set train.data.root=FOLDER`",
    )


def _attempt(folder: AttemptFolder) -> tuple[str, ...]:
    attempt = folder.attempt
    return (
        f"[{attempt.title}](../results/reference/attempts/{folder.path.name})",
        f"{times(attempt.conv_reduction)} fewer",
        str(folder.epochs),
        f"{folder.accuracy:.2f}{'' if folder.exported else '*'}",
        attempt.lesson,
    )


def _times(entry: Entry) -> tuple[str, ...]:
    latency, predicted = entry.result.latency_ms, entry.prediction
    low, high = latency.speedup.ci95
    return (
        entry.folder.name,
        f"{latency.device} ({KIND_LABEL[latency.kind]})",
        f"{milliseconds(latency.baseline.median)} -> {milliseconds(latency.pruned.median)}",
        f"**{times(latency.speedup.median)}** ({low:.2f}-{high:.2f})",
        f"{predicted.target}, {predicted.dtype}, within {predicted.uncertainty:g}x",
        f"{milliseconds(predicted.dense_ms)} -> {milliseconds(predicted.pruned_ms)}, "
        f"launches {milliseconds(predicted.dense_launch_ms)} and {milliseconds(predicted.pruned_launch_ms)} of it",
        times(predicted.speed_up),
    )


def _tuned(name: str, result: Result) -> tuple[str, ...]:
    latency, use = result.latency_ms, result.environment["tuned"]
    low, high = latency.speedup.ci95
    shares = [
        f"{len(use[network]['tuned'])} of {len(use[network]['tuned']) + len(use[network]['untuned'])} {what}"
        for network, what in (("baseline", "dense"), ("pruned", "pruned"))
    ]
    return (
        name,
        f"{latency.device} ({KIND_LABEL[latency.kind]})",
        f"{milliseconds(latency.baseline.median)} -> {milliseconds(latency.pruned.median)}",
        f"**{times(latency.speedup.median)}** ({low:.2f}-{high:.2f})",
        ", ".join(shares),
    )


def _conditions(entries: Sequence[Entry]) -> str:
    """Under which each network was measured."""
    lines = []
    for entry in entries:
        lines.append(f"- {entry.folder.name}: {conditions(entry.result)}")
        lines += [f"- {entry.folder.name}, tuned: {conditions(entry.tuned)}"] if entry.tuned else []
    return "\n".join(["Conditions and warnings of these measurements:", "", *lines])


def _notes(entries: Sequence[Entry]) -> str:
    """Of which images the accuracies are."""
    lines: dict[str, str] = {}
    for entry in entries:
        data = entry.folder.network.data
        note = f"; {data.note}" if data.note else ""
        lines[data.sha256] = f"- {data.name}: {data.images:,} test images, SHA-256 `{data.sha256[:16]}…`{note}"
    return "\n".join(["The images:", "", *lines.values()])


def _published(row: Published) -> tuple[str, ...]:
    return (
        row.network,
        "" if row.conv_reduction is None else f"{row.conv_reduction:g}× fewer",
        "" if row.macs_reduction is None else f"{row.macs_reduction:.2f}× fewer",
        row.loss if row.dense is None or row.pruned is None else f"{row.dense:.2f} -> {row.pruned:.2f}",
        "" if row.speed_up is None else f"{row.speed_up:g}× on {row.device}",
        row.source,
    )


def files(entries: Sequence[Entry]) -> dict[str, str]:
    """What belongs into `docs/`, by path."""
    accuracy = plot_trade_off(
        accuracy_points(entries),
        "accuracy, points over the dense network",
        "Accuracy over compression",
        "accuracy",
        0.0,
    )
    speed = plot_trade_off(
        speed_points(entries), "times faster than the dense network", "Speed-up over compression", "speed", 1.0
    )
    return {PAGE: page(entries, list_baselines(), list_attempts()), ACCURACY_PLOT: accuracy, LATENCY_PLOT: speed}


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.results_page", description=__doc__)
    parser.add_argument("--predict", action="store_true", help="predictions anew, by the cost model of today")
    if parser.parse_args().predict:
        for folder in list_networks():
            predict(folder, console_reporter())
    for name, text in files(read_entries()).items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        write_text(DOCS / name, text)


if __name__ == "__main__":
    main()
