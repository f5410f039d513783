"""The page: well-formed, needs nothing else, every number linked, everything escaped, the same for the same results."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from errors import InputError
from metrics import provenance
from report.page import sections, to_html, to_markdown
from report.results import read

VOID = {"meta", "link", "br", "img", "hr", "input"}
FINDING = SimpleNamespace(
    paper="Paper <b>&",
    claim="A | B",
    place="Table 1",
    tested="digits",
    found="+1.0",
    verdict="partly",
    said="partly (one seed)",
    why="few seeds",
)


@dataclass
class Element:
    """A start tag and the text up to its end."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()


class Page(HTMLParser):
    """Reads a page and fails where a tag is not closed, or closed and never opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs), f"an attribute is given twice: {attrs}"
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop().tag == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def of(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    @property
    def ids(self) -> list[str]:
        return [element.attributes["id"] for element in self.elements if "id" in element.attributes]


def html(tree, findings=(), stream=None) -> str:
    return to_html(sections(read(tree.results, stream), tree.results), findings)


def markdown(tree, findings=()) -> str:
    return to_markdown(sections(read(tree.results), tree.results), findings)


def pictures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


@pytest.fixture
def page(several):
    return Page(html(several))


def test_the_page_is_well_formed_and_its_ids_are_unique(page):
    assert len(page.ids) == len({*page.ids})
    assert [element.text for element in page.of("h2")] == ["digits", "How to read the tables"]


def test_every_link_inside_leads_somewhere(page):
    inside = {link for element in page.elements if (link := element.attributes.get("href") or "").startswith("#")}
    assert inside
    assert {link[1:] for link in inside} <= {*page.ids}
    used = {*re.findall(r"url\(#([^)]*)\)", str([element.attributes for element in page.elements]))}
    assert used and used <= {*page.ids}


def test_every_number_leads_to_the_runs_of_its_method(several, page):
    cells = [element for element in page.of("td") if re.match(r"[−+]?\d+\.\d", element.text)]
    links = [element for element in page.of("a") if (element.attributes["href"]).startswith("#runs/")]
    assert len(links) >= len(cells) > 0
    for run in read(several.results)[0].every:
        assert (several.root / "comparison" / f"../results/digits/{run.method}/seed-{run.seed}").resolve().is_dir()
        assert f"../results/digits/{run.method}/seed-{run.seed}/" in {e.attributes["href"] for e in page.of("a")}


def test_nothing_is_fetched_and_nothing_is_run(several):
    text = html(several, [FINDING])
    assert "http" not in text and "//" not in text
    assert not re.search(r"@import|url\((?!#)|<script|\son\w+=", text)
    links = [
        value for e in Page(text).elements for name, value in e.attributes.items() if name in ("href", "src", "action")
    ]
    assert links and all(re.match(r"#|\.\./results/|data:image/png;base64,", link) for link in links)


def test_the_best_is_bold_in_the_page(page):
    best = [element.text for element in page.of("td") if "best" in element.classes]
    assert best[:3] == ["90.0 ± 0.0", "91.0 ± 0.0", "92.5 ± 0.0"]  # final, own data, incremental
    leads = [element.text for element in page.of("td") if "leads" in element.classes]
    assert leads[:2] == ["60.7 ± 3.1", "61.7 ± 3.1"]


def test_the_same_results_give_the_same_bytes(several, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(several.results, other / "results")
    again = SimpleNamespace(results=other / "results")
    assert html(several) == html(again)


def test_other_results_give_another_page(several):
    before = html(several)
    several.run("fedprox", 0, 0.2)
    assert html(several) != before


NAME = "a<b>&'\"$x_1^2$|*c*"


def test_signs_in_names_are_signs(tree):
    tree.run(NAME, 0, 0.4, stream="s<i>&")
    tree.run("fedavg", 0, 0.5, stream="s<i>&", mlflow_run="<script>alert(1)</script>")
    text = html(tree, [FINDING])
    page = Page(text)
    assert page.of("script") == [] and page.of("i") == [] and page.of("b") == []
    assert {element.text for element in page.of("th")} >= {NAME, "fedavg"}
    assert "Paper <b>&" in {element.text for element in page.of("span")}
    assert "s<i>&" in [element.text for element in page.of("h2")]
    inside = {e.attributes["href"][1:] for e in page.of("a") if e.attributes["href"].startswith("#")}
    assert inside <= {*page.ids}
    outside = {unquote(e.attributes["href"]) for e in page.of("a")} - {f"#{name}" for name in inside}
    assert f"../results/s<i>&/{NAME}/seed-0/" in outside
    drawn = {"".join(element.itertext()) for svg in pictures(text) for element in svg.iter("text")}
    assert NAME in drawn


def test_in_markdown_every_row_has_as_many_cells_as_its_header(several):
    several.run(NAME, 0, 0.4)
    rows = 0
    for block in re.findall(r"(?:^\|.*\n)+", markdown(several, [FINDING]), re.M):
        header, rule, *body = block.splitlines()
        assert re.fullmatch(r"\|( (---|---:) \|)+", rule)
        width = len(re.findall(r"(?<!\\)\|", header))
        for line in body:
            rows += 1
            assert len(re.findall(r"(?<!\\)\|", line)) == width, line
    assert rows > 20
    assert "<b>" not in markdown(several, [FINDING])


def test_both_say_the_same_numbers(several):
    page, text = Page(html(several)), markdown(several)
    for cell in {e.text for e in page.of("td") if re.fullmatch(r"\d+\.\d ± \d+\.\d", e.text)}:
        assert cell in text


def test_the_claims_are_there_only_where_there_are_any(several):
    assert "Claims" not in html(several) + markdown(several)
    text = html(several, [FINDING])
    verdict = next(element for element in Page(text).of("td") if "verdict" in element.classes)
    assert (verdict.text, "part" in verdict.classes) == ("partly (one seed)", True)
    assert "A \\| B" in markdown(several, [FINDING])


def test_the_places_of_a_claim_stand_under_it(several):
    places = [SimpleNamespace(**{**vars(FINDING), "place": place}) for place in ("Table 1", "Table 2")]
    other = SimpleNamespace(**{**vars(FINDING), "claim": "another", "found": "one; two"})
    page = Page(html(several, [*places, other]))
    heads = [element for element in page.of("th") if element.attributes.get("scope") == "rowgroup"]
    assert [element.attributes["rowspan"] for element in heads] == ["2", "1"]
    assert {"one", "two"} <= {element.text for element in page.of("p")}


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [("reproduced", "good"), ("partly", "part"), ("not", "bad"), ("not reproduced", "bad"), ("not testable", "open")],
)
def test_verdicts_are_told_apart(several, verdict, kind):
    text = html(several, [SimpleNamespace(**{**vars(FINDING), "verdict": verdict})])
    (cell,) = (element for element in Page(text).of("td") if "verdict" in element.classes)
    assert kind in cell.classes


def test_one_run_of_one_experience_is_a_page(tree):
    """No seeds to compare, no forgetting, no course over experiences."""
    tree.run("fedavg", 0, 0.4, experiences=1)
    text = html(tree)
    page = Page(text)
    assert "Differences" not in [element.text for element in page.of("h3")]
    assert "forgetting ↓" not in [element.text for element in page.of("th")]
    assert next(element.text for element in page.of("td") if "best" in element.classes) == "40.0"
    assert "±" not in "".join(element.text for element in page.of("td"))


def test_many_methods_keep_their_places(tree):
    for number in range(24):
        tree.run(f"method-with-a-long-name-{number:02}", 0, 0.2 + number / 40)
    text = html(tree)
    page = Page(text)
    assert len({*page.ids}) == len(page.ids)
    captions = [element.text for element in page.of("figcaption")]
    assert len(captions) == 4
    order = [element.text for element in page.of("th") if element.text.startswith("method-")]
    assert order[:24] == [f"method-with-a-long-name-{number:02}" for number in reversed(range(24))]


def test_every_figure_is_an_image_in_the_colours_of_the_page(several):
    found = pictures(html(several))
    assert len(found) == 3 + 3 + 1  # accuracy, bytes, clients; a heat map a method and the key to their colours
    for svg in found:
        assert svg.get("viewBox") and svg.get("width") is None
        text = ElementTree.tostring(svg, encoding="unicode")
        assert "currentColor" in text and "#000001" not in text and "Date" not in text


def test_methods_over_simulated_time_have_a_front_and_times(tree):
    tree.run("fedbe", 0, 0.5, simulated=7.0)
    tree.run("full", 0, 0.6, simulated=9.0)
    text = html(tree)
    assert "against simulated time" in text and "Simulated time to the same accuracy" in text
    assert "against simulated time" not in html(tree_without_time(tree))


def tree_without_time(tree):
    for folder in tree.results.glob("*/*/*"):
        shutil.rmtree(folder)
    tree.run("fedbe", 0, 0.5)
    tree.run("full", 0, 0.6)
    return tree


def test_what_makes_methods_hard_to_compare_is_said(tree):
    tree.run("fedavg", 0, git_clean=False)
    tree.run("fedlwf", 0, stream_digest="other")
    tree.run("fedlwf", 1, stream_digest="other")
    text = html(tree)
    assert "different digests" in text and "different seeds" in text and "The code of 1 run had" in text
    assert "c0ffeec+" in text


def test_one_stream_can_be_asked_for(several):
    several.run("fedavg", 0, stream="other")
    assert {element.text for element in Page(html(several)).of("h2")} >= {"digits", "other"}
    assert "other" not in {element.text for element in Page(html(several, stream="digits")).of("h2")}


@pytest.mark.parametrize("name", ["run.json", "accuracy_matrix.parquet", "rounds.parquet"])
def test_results_that_are_not_whole_are_named(several, name):
    (several.results / "digits/fedlwf/seed-1" / name).unlink()
    with pytest.raises(InputError, match=f"fedlwf/seed-1 lacks {name}"):
        html(several)


def test_the_page_names_its_runs_to_programs(several, tmp_path):
    (tmp_path / "page.html").write_text(html(several))
    runs = provenance.read(tmp_path / "page.html")["runs"]
    folders = sorted(path.parent for path in several.results.glob("*/*/seed-*/run.json"))
    assert sorted(run["name"] for run in runs) == [str(folder.relative_to(several.results)) for folder in folders]
    assert {run["digest"] for run in runs} == {
        json.loads((each / "run.json").read_text())["digest"] for each in folders
    }
