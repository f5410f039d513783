"""The table of methods over a small tree of results."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from errors import InputError
from metrics.comparison import collect, table, to_markdown, to_rich


@pytest.fixture
def results(tmp_path):
    runs = {
        "digits/fedavg/seed-0": {"final_average_accuracy": 0.5, "forgetting": 0.3, "bytes_up": 1_000_000},
        "digits/fedavg/seed-1": {"final_average_accuracy": 0.7, "forgetting": 0.3, "bytes_up": 3_000_000},
        "digits/joint/seed-0": {"final_average_accuracy": 0.9, "received.forgetting": 0.1, "bytes_up": 0},
        "cifar100/fedavg/seed-10": {"final_average_accuracy": 0.2, "bytes_up": 5_000_000},
    }
    for run, metrics in runs.items():
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "digits/fedavg/seed-2").mkdir()  # still running
    return tmp_path


def test_collect_has_one_row_per_finished_run(results):
    runs = collect(results)
    assert runs[["stream", "method", "seed"]].to_numpy().tolist() == [
        ["cifar100", "fedavg", 10],
        ["digits", "fedavg", 0],
        ["digits", "fedavg", 1],
        ["digits", "joint", 0],
    ]
    assert set(collect(results, "digits")["stream"]) == {"digits"}


def test_no_results_says_how_to_get_some(results, tmp_path):
    with pytest.raises(InputError, match=r"no results in .*/none/; run: fcl run fedavg --stream digits"):
        collect(tmp_path / "none")
    with pytest.raises(InputError, match=r"no results in .*/core50; run: fcl run fedavg --stream core50"):
        collect(results, "core50")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"forgetting": ', "is not valid JSON"),
        ("[1, 2]", "expected an object of numbers, got list"),
        ('{"forgetting": "low"}', "forgetting: expected a number, got 'low'"),
    ],
)
def test_a_damaged_file_is_named(results, text, complaint):
    (results / "digits/joint/seed-0/metrics.json").write_text(text)
    with pytest.raises(InputError, match="digits/joint/seed-0/metrics.json.*" + complaint):
        collect(results)


def test_table_has_mean_and_sample_std_best_first_within_a_stream(results):
    methods = table(collect(results))
    assert methods.index.tolist() == [("cifar100", "fedavg"), ("digits", "joint"), ("digits", "fedavg")]
    fedavg = methods.loc[("digits", "fedavg")]
    assert fedavg["seeds"] == 2
    assert fedavg["final_average_accuracy"] == pytest.approx(0.6)
    assert fedavg["final_average_accuracy_std"] == pytest.approx(0.1 * 2**0.5)
    assert methods["final_average_accuracy_std"].isna().tolist() == [True, True, False]


def test_markdown_shows_percent_megabytes_and_what_is_missing(results):
    header, _, joint, fedavg, _, legend = to_markdown(table(collect(results, "digits"))).splitlines()
    assert header.startswith("| method | seeds | final | own data |")
    assert header.endswith("| MB up | MB down |")
    assert joint == "| joint | 1 | 90.0 | – | – | – | – | – | 0.0 | – |"
    assert "mean ± std over seeds" in legend
    assert fedavg == "| fedavg | 2 | 60.0 ± 14.1 | – | – | 30.0 ± 0.0 | – | – | 2.0 ± 1.4 | – |"


def test_the_stream_is_shown_where_there_are_several(results):
    assert to_markdown(table(collect(results))).startswith("| stream | method | seeds |")


def test_the_terminal_shows_the_same_cells(results):
    methods = table(collect(results))
    screen = StringIO()
    Console(file=screen, width=250).print(to_rich(methods))
    for cell in ("cifar100", "60.0 ± 14.1", "90.0", "–"):
        assert cell in screen.getvalue()
