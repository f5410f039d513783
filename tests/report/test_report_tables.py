"""The tables: the best by direction, what the test says of the others, and what nobody measured."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metrics.comparison import COLUMNS, MISSING, PERCENT, Column
from metrics.task_measures import task_columns
from report.front import Point, accuracy_metric, front, in_devices_time, points
from report.results import Stream, read
from report.tables import best, compared, differences, means

ACCURACY = Column("accuracy", PERCENT, higher=True)
LOSS = Column("loss", 1, higher=False, digits=3)
VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def stream(**methods: list[dict[str, float]]) -> Stream:
    """Methods whose runs have these metrics; seeds count from 0."""
    rows = [
        {"stream": "digits", "method": method, "seed": seed, **metrics}
        for method, runs in methods.items()
        for seed, metrics in enumerate(runs)
    ]
    return Stream("digits", pd.DataFrame(rows), {method: [] for method in methods})


def cells(table, method: str):
    return next(row.cells for row in table.rows if row.method == method)


@given(VALUES)
def test_bold_is_the_best_by_direction(values):
    found = stream(**{f"m{i}": [{"accuracy": value, "loss": value}] for i, value in enumerate(values)})
    table = means(found, {"accuracy": ACCURACY, "loss": LOSS}, "")
    assert table.header == ["accuracy ↑", "loss ↓"]
    for number, row in ((int(row.method[1:]), row) for row in table.rows):
        assert row.cells[0].best == (values[number] >= max(values) * (1 - 1e-9) - 1e-12)
        assert row.cells[1].best == (values[number] <= min(values) * (1 + 1e-9) + 1e-12)


def test_every_column_of_the_project_has_a_direction_that_a_reader_expects():
    lower = {heading for heading, column in COLUMNS.items() if not column.higher}
    assert lower == {"forgetting", "MB up", "MB down"}


def test_equal_methods_are_all_best():
    table = means(stream(a=[{"loss": 0.1 + 0.2}], b=[{"loss": 0.3}], c=[{"loss": 0.4}]), {"loss": LOSS}, "")
    assert [(row.method, row.cells[0].best) for row in table.rows] == [("a", True), ("b", True), ("c", False)]


def test_the_best_that_sends_is_marked_where_the_best_of_all_does_not():
    table = means(
        stream(
            joint=[{"accuracy": 0.9, "bytes_up": 0, "bytes_down": 0}],
            fedavg=[{"accuracy": 0.5, "bytes_up": 9, "bytes_down": 9}],
            fedlwf=[{"accuracy": 0.6, "bytes_up": 9, "bytes_down": 9}],
        ),
        {"accuracy": ACCURACY},
        "",
    )
    marks = {row.method: (row.cells[0].best, row.cells[0].leads) for row in table.rows}
    assert marks == {"joint": (True, False), "fedlwf": (False, True), "fedavg": (False, False)}


def test_what_nobody_measured_is_no_column_and_what_one_did_not_is_a_dash():
    found = stream(a=[{"accuracy": 0.5}], b=[{"accuracy": 0.4, "loss": 2.0}])
    table = means(found, {"accuracy": ACCURACY, "loss": LOSS, "none": Column("none", 1, higher=True)}, "")
    assert table.header == ["accuracy ↑", "loss ↓"]
    assert cells(table, "a")[1].text == MISSING and not cells(table, "a")[1].best
    assert cells(table, "b")[1].text == "2.000" and cells(table, "b")[1].best
    assert best(found, Column("none", 1, higher=True)) == []


def test_differences_are_in_the_shown_unit_with_the_p_of_scipy():
    a, b = [0.9, 0.8, 0.85], [0.7, 0.75, 0.7]
    found = stream(a=[{"accuracy": x} for x in a], b=[{"accuracy": x} for x in b])
    table = differences(found, {"accuracy": ACCURACY}, "")
    assert cells(table, "a")[0].text == "best"
    (cell,) = cells(table, "b")
    assert cell.text == "−13.3 ± 7.6"
    assert cell.note == f"p = {stats.ttest_rel(b, a).pvalue:.3f}"


def test_the_best_of_a_cost_is_the_lowest_and_the_others_differ_upwards():
    table = differences(stream(a=[{"loss": 1.0}], b=[{"loss": 3.5}]), {"loss": LOSS}, "")
    assert (cells(table, "a")[0].text, cells(table, "b")[0].text) == ("best", "+2.500")


@pytest.mark.parametrize(("seeds", "tested"), [(1, False), (2, False), (3, True)])
def test_too_few_seeds_are_said_and_have_no_p(seeds, tested):
    runs = {
        name: [{"final_average_accuracy": base + step / (3 + 2 * i)} for i in range(seeds)]
        for name, base, step in (("a", 0.6, 0.1), ("b", 0.5, 0.3))
    }
    (table,) = compared(stream(**runs), COLUMNS)
    assert ("no test" in table.title) != tested
    assert any("p " in cell.note for row in table.rows for cell in row.cells) == tested


def test_a_method_with_fewer_seeds_says_over_how_many_it_is_compared():
    runs = {"a": [{"accuracy": x} for x in (0.9, 0.8, 0.7)], "b": [{"accuracy": x} for x in (0.4, 0.6)]}
    (cell,) = cells(differences(stream(**runs), {"accuracy": ACCURACY}, ""), "b")
    assert cell.note == "2 seeds: too few for a test"


def test_identical_methods_are_called_so():
    same = [{"accuracy": x} for x in (0.9, 0.8, 0.7)]
    (cell,) = cells(differences(stream(a=same, b=same), {"accuracy": ACCURACY}, ""), "b")
    assert (cell.text, cell.note) == ("0.0 ± 0.0", "identical, 3 seeds")


def test_one_method_alone_is_compared_with_nobody():
    assert compared(stream(a=[{"final_average_accuracy": 0.5}]), COLUMNS) == []


def test_of_several_tasks_each_measure_has_its_direction(tree):
    tree.run("fedavg", 0, 0.5, experiences=1, tasks={("read", "accuracy"): 0.9, ("draw", "mse"): 0.2})
    tree.run("tap", 0, 0.5, experiences=1, tasks={("read", "accuracy"): 0.8, ("draw", "mse"): 0.1})
    (found,) = read(tree.results)
    table = means(found, task_columns(found.table), "")
    assert sorted(table.header) == ["draw: MSE ↓", "read: accuracy ↑"]
    bold = {row.method: [h for h, cell in zip(table.header, row.cells, strict=True) if cell.best] for row in table.rows}
    assert bold == {"fedavg": ["read: accuracy ↑"], "tap": ["draw: MSE ↓"]}
    assert accuracy_metric(found) == "personalisation_mean"


# The front


def dominates(a: Point, b: Point) -> bool:
    return a.cost <= b.cost and a.accuracy >= b.accuracy and (a.cost, a.accuracy) != (b.cost, b.accuracy)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_is_who_nobody_dominates(pairs):
    every = {str(i): Point(cost, accuracy) for i, (cost, accuracy) in enumerate(pairs)}
    free = {name for name, a in every.items() if not any(dominates(b, a) for b in every.values())}
    found = front(every)
    assert set(found) == free and len(found) == len(free)
    assert [every[name].cost for name in found] == sorted(every[name].cost for name in found)


def test_points_are_means_over_seeds_in_the_shown_unit(several):
    (found,) = read(several.results)
    at = points(found, {"bytes_up": 1e-6, "bytes_down": 1e-6})
    assert at["fedavg"].cost == pytest.approx(2 * 1.0 * 3 * 3 * 2)  # both ways, MB, clients, experiences, rounds
    assert at["fedavg"].accuracy == pytest.approx(0.3 - 0.01 / 3)
    assert at["joint"].cost == 0


def test_simulated_time_is_of_methods_with_a_cost_model_only(tree):
    tree.run("fedbe", 0, 0.5, simulated=7.0)
    tree.run("full", 0, 0.6, simulated=9.0, cost_model=False)  # faults are simulated: its time is in samples
    tree.run("fedavg", 0, 0.6)
    (found,) = read(tree.results)
    at = in_devices_time(found)
    assert set(at) == {"fedbe"}
    assert at["fedbe"].cost == pytest.approx(7 * 3 * 2)
