from __future__ import annotations

import io
import re
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from results.figures import summary_rows, warnings_of
from results.markdown import report_markdown
from results.records import Result, SpeedUpRecord
from results.report_html import report_html
from results.table import print_table

from .synthetic import synthetic_data


class Page(HTMLParser):
    """Collects what the tests ask about: numbers by field, ids, references, and whether tags nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: dict[str, set[float]] = defaultdict(set)
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._skip = False
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if "data-field" in values:
            self.numbers[values["data-field"]].add(float(values["value"]))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def numbers_of(result: Result) -> dict[str, float]:
    """Every number of `result.json` but the environment's, by its dotted place."""
    found: dict[str, float] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{place}.{key}" if place else key)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(inner, f"{place}.{index}")
        elif isinstance(value, int | float):
            found[place] = value

    walk(result.model_dump(mode="json", exclude={"environment", "schema_"}), "")
    return found


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_html(synthetic_data()))


def test_every_number_of_the_result_stands_in_the_page_in_full_precision(page: Page) -> None:
    numbers = numbers_of(synthetic_data().result)
    assert len(numbers) > 30
    assert page.numbers == {place: {value} for place, value in numbers.items()}


def test_a_warning_of_the_measurement_stands_in_every_form_of_the_report() -> None:
    data = synthetic_data()
    warning = "throttled: its clock fell from 585 to 427 MHz | <between> rounds"
    latency = data.result.latency_ms.model_copy(update={"warnings": (warning,)})
    data = replace(data, result=data.result.model_copy(update={"latency_ms": latency}))
    assert warning in Page(report_html(data)).text
    assert f"**Warning:** {warning.replace('|', chr(92) + '|')}" in report_markdown(data)
    output = io.StringIO()
    print_table(data.result, Console(file=output, width=200))
    assert f"Warning: {warning}" in output.getvalue()


def test_accuracies_on_unchecked_images_are_said_to_be_that_in_every_form_of_the_report() -> None:
    data = synthetic_data()
    environment = data.result.environment
    for verified, said in ((False, True), (True, False), (None, False)):
        known = {**environment, "data": {"name": "cifar10", "verified": verified}}
        changed = replace(data, result=data.result.model_copy(update={"environment": known}))
        output = io.StringIO()
        print_table(changed.result, Console(file=output, width=300))
        for text in (Page(report_html(changed)).text, report_markdown(changed), output.getvalue()):
            assert ("images of cifar10 were not checked against the published ones" in text) == said


@pytest.mark.parametrize(
    ("median", "ci95", "said"),
    [
        (2.0, (1.9, 2.1), "2.00× faster"),
        (1.01, (0.99, 1.03), "1.01×, no difference shown"),
        (0.5, (0.4, 0.6), "2.00× slower"),
    ],
)
def test_a_network_is_called_faster_only_where_it_is(median: float, ci95: tuple[float, float], said: str) -> None:
    result = synthetic_data().result
    latency = result.latency_ms.model_copy(update={"speedup": SpeedUpRecord(median=median, ci95=ci95)})
    assert summary_rows(result.model_copy(update={"latency_ms": latency}))[-1].change.text == said


def test_what_is_to_be_known_of_the_test_images_is_said() -> None:
    environment = {**synthetic_data().result.environment, "data": {"name": "cifar10", "note": "CIFAR-10 recompressed"}}
    result = synthetic_data().result.model_copy(update={"environment": environment})
    assert "the test images are CIFAR-10 recompressed" in warnings_of(result)


def test_the_page_needs_no_other_file(page: Page) -> None:
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#"), (tag, name, value)
        assert "url(" not in value or "url(#" in value, value
    assert not [tag for tag, _, _ in page.attributes if tag in ("script", "link", "iframe")]


def test_plots_for_phones_give_most_of_their_width_to_what_they_show(page: Page) -> None:
    frames = re.findall(
        r'<svg[^>]*?viewBox="0 0 (\S+) [^>]*>.*?id="[^"]*patch_2">\s*<path d="M (\S+) \S+ \s*L (\S+) ',
        report_html(synthetic_data()),
        re.DOTALL,
    )
    narrow = [(float(right) - float(left)) / float(width) for width, left, right in frames if float(width) < 300]
    assert len(narrow) == 6
    assert min(narrow) > 0.5


def test_references_inside_the_plots_find_their_own_plots_definitions(page: Page) -> None:
    identities = [value for _, name, value in page.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    for _, name, value in page.attributes:
        for target in re.findall(r"url\(#([^)]*)\)", value) + ([value[1:]] if name == "xlink:href" else []):
            assert target in identities


def test_names_with_markup_in_them_are_shown_as_text(page: Page) -> None:
    assert "a <network> & its name" in page.text
    assert "network" not in {tag for tag, _, _ in page.attributes}


def test_every_latency_in_the_page_says_that_it_is_a_host_timing(page: Page) -> None:
    sections = page.text.split("host timing, not a phone")
    assert len(sections) >= 4  # the headline, the samples, the layers, the method
    assert "Median latency (host)" in page.text


def test_a_page_without_profile_and_histories_leaves_their_sections_out() -> None:
    bare = replace(synthetic_data(), layer_times=[], epochs=[], residuals=[], layers=[])
    text = Page(report_html(bare)).text
    assert "Time per layer" not in text
    assert "ADMM\n" not in text
    assert "Checks" in text


def test_the_same_data_give_the_same_page() -> None:
    assert report_html(synthetic_data()) == report_html(synthetic_data())


def test_the_markdown_tables_are_rectangular_and_labelled() -> None:
    text = report_markdown(synthetic_data("a|b"))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "**host timing, not a phone**" in text
    assert "13.4× fewer" in text


def test_the_terminal_table_shows_both_networks_the_interval_and_the_device() -> None:
    stream = io.StringIO()
    data = synthetic_data("name")
    print_table(data.result, Console(file=stream, width=200))
    text = stream.getvalue()
    low, high = data.result.latency_ms.speedup.ci95
    for expected in ("98.33 %", "97.78 %", "697,000", f"{low:.2f} to {high:.2f}", data.result.latency_ms.device):
        assert expected in text


def test_the_style_sheet_is_installed_with_the_package() -> None:
    import results

    assert (Path(results.__file__).parent / "report.css").is_file()
