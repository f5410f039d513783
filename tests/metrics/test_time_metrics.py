"""Accuracy over simulated time: closed forms on hand-made rounds, what must hold for any, and methods side by side."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from metrics.communication import costs
from metrics.plots import draw_over_time
from metrics.time import common_targets, course_over_time, mean_course, speed_up, time_to, time_to_targets
from metrics.time_comparison import over_time, to_markdown, to_rich

CLIENTS = [3.0, 1.0, 2.0]  # simulated time of each client in a round: the first is the slowest


def played(shape: list[int], unit: float = 1.0) -> pd.DataFrame:
    """rounds.parquet of clients that take `unit * CLIENTS`; `shape` are the rounds of each experience."""
    rows = [
        {"experience": experience, "round": number, "client": client, "simulated": unit * time}
        for experience, count in enumerate(shape)
        for number in range(count)
        for client, time in enumerate(CLIENTS)
    ]
    fixed = {"samples": 1, "steps": 1, "bytes_up": 10, "bytes_down": 5, "seconds": 1.0, "admitted": True}
    return pd.DataFrame(rows).assign(**fixed)


def measured(accuracies: list[list[float]]) -> pd.DataFrame:
    """course.parquet whose mean over the experiences so far is as given, by experience and round."""
    rows = []
    for experience, course in enumerate(accuracies):
        spread = np.linspace(-0.1, 0.1, experience + 1) if experience else [0.0]
        for number, accuracy in enumerate(course):
            rows += [(experience, number, tested, accuracy + spread[tested], 7) for tested in range(experience + 1)]
    return pd.DataFrame(rows, columns=["experience", "round", "tested", "accuracy", "samples"])


def over(accuracies: list[list[float]], unit: float = 1.0) -> pd.DataFrame:
    return course_over_time(measured(accuracies), played([len(each) for each in accuracies], unit))


courses = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)


# One run


def test_a_round_takes_as_long_as_its_slowest_client_admitted_or_not():
    rounds = played([2, 1])
    assert costs(rounds)["simulated_time"] == 3 * 3.0
    slowest_is_refused = rounds.assign(admitted=rounds.client != 0)
    assert costs(slowest_is_refused)["simulated_time"] == 3 * 3.0


def test_without_a_cost_model_there_is_no_simulated_time(rounds):
    assert "simulated_time" not in costs(rounds), "results of before"
    assert "simulated_time" not in costs(rounds.assign(simulated=0.0))


def test_time_and_bytes_add_up_over_rounds_and_accuracy_is_the_mean_over_experiences_so_far():
    found = over([[0.2, 0.6], [0.3, 0.5]])
    expected = {
        "experience": [0, 0, 1, 1],
        "round": [0, 1, 0, 1],
        "time": [3.0, 6.0, 9.0, 12.0],
        "bytes": [45, 90, 135, 180],
        "accuracy": [0.2, 0.6, 0.3, 0.5],
    }
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected), rtol=1e-12)


def test_a_round_without_clients_costs_nothing():
    rounds = played([3])
    found = course_over_time(measured([[0.1, 0.2, 0.3]]), rounds[rounds["round"] != 1])
    assert found["time"].tolist() == [3.0, 3.0, 6.0]
    first = course_over_time(measured([[0.1, 0.2, 0.3]]), rounds[rounds["round"] != 0])
    assert first["time"].tolist() == [0.0, 3.0, 6.0]


def test_a_course_of_some_rounds_still_counts_the_time_of_all():
    course = measured([[0.1, 0.2, 0.3]])
    found = course_over_time(course[course["round"] == 2], played([3]))
    assert found[["time", "bytes"]].to_numpy().tolist() == [[9.0, 135]]


@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(random):
    course, rounds = measured([[0.2, 0.6, 0.4], [0.3, 0.5]]), played([3, 2])
    shuffled = (each.iloc[random.sample(range(len(each)), len(each))] for each in (course, rounds))
    pd.testing.assert_frame_equal(course_over_time(*shuffled), course_over_time(course, rounds), check_exact=True)


@given(courses, st.floats(0, 1.1))
def test_time_to_a_target_is_the_first_that_reaches_it(accuracies, target):
    course = over([accuracies])
    time = time_to(course, target)
    if time is None:
        assert max(accuracies) < target
    else:
        assert course.accuracy[course.time == time].item() >= target
        assert (course.accuracy[course.time < time] < target).all()


@given(courses, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_is_never_reached_earlier(accuracies, one, other):
    lower, higher = (time_to(over([accuracies]), target) for target in sorted([one, other]))
    assert higher is None or lower <= higher


@given(courses, st.floats(0, 1.1))
def test_with_one_experience_the_time_to_targets_is_the_time_to_the_target(accuracies, target):
    assert time_to_targets(over([accuracies]), [target]) == time_to(over([accuracies]), target)


def test_over_several_experiences_each_counts_from_its_own_beginning():
    course = over([[0.9, 0.95, 0.99], [0.4, 0.6, 0.5]])
    assert time_to(course, 0.5) == 3.0, "long before the second experience"
    assert time_to_targets(course, [0.95, 0.5]) == 6.0 + 6.0
    assert time_to_targets(course, [0.95, 0.7]) is None


# Several methods


def test_the_fastest_is_1_and_others_say_how_much_longer_they_take():
    found = speed_up({"slow": over([[0.1, 0.2, 0.5]], unit=2), "fast": over([[0.5]]), "never": over([[0.2]])}, [0.5])
    assert found.index.tolist() == ["fast", "slow", "never"]
    assert found["time"].tolist()[:2] == [3.0, 18.0] and found["relative"].tolist()[:2] == [1.0, 6.0]
    assert found.loc["never"].isna().all()


def test_targets_are_what_the_weakest_method_ends_each_experience_with():
    compared = {"a": over([[0.9, 0.8], [0.5, 0.6]]), "b": over([[0.2, 0.7], [0.9, 0.9]])}
    assert common_targets(compared) == pytest.approx([0.95 * 0.7, 0.95 * 0.6])
    assert speed_up(compared).loc["a", "time"] == 3.0 + 6.0
    assert speed_up(compared).loc["b", "time"] == 6.0 + 3.0


@given(st.lists(st.lists(courses, min_size=2, max_size=2), min_size=1, max_size=4))
def test_every_method_reaches_the_common_targets(methods):
    compared = {str(place): over(accuracies) for place, accuracies in enumerate(methods)}
    found = speed_up(compared)
    assert found.notna().all(axis=None) and found["relative"].min() == 1
    assert found["time"].is_monotonic_increasing


@given(courses, courses, st.sampled_from([0.25, 2.0, 64.0]))
def test_the_unit_of_time_does_not_matter(one, other, unit):
    here, there = (speed_up({"one": over([one], each), "other": over([other], 3 * each)}) for each in (1.0, unit))
    assert there.index.tolist() == here.index.tolist()
    assert there["time"].tolist() == pytest.approx((unit * here["time"]).tolist())
    assert there["relative"].tolist() == pytest.approx(here["relative"].tolist())


def test_the_mean_over_seeds_is_of_time_and_accuracy_round_by_round():
    found = mean_course([over([[0.2, 0.6]]), over([[0.4, 0.8]], unit=3)])
    assert found["time"].tolist() == [6.0, 12.0]
    assert found["accuracy"].tolist() == pytest.approx([0.3, 0.7])
    pd.testing.assert_frame_equal(mean_course([over([[0.2, 0.6]])]), over([[0.2, 0.6]]), check_dtype=False)


def test_the_figure_is_the_same_every_time(tmp_path):
    compared = {"fedbe": over([[0.2, 0.6], [0.5]]), "full": over([[0.1, 0.7], [0.6]], unit=3)}
    for name in ("first.png", "again.png"):
        draw_over_time(compared, tmp_path / name, "digits")
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()


# From results


@pytest.fixture
def write(tmp_path):
    """Writes what a run leaves, and gives the runs so far as `metrics.comparison.collect` does."""
    runs = []

    def add(method: str, seed: int = 0, course=None, rounds=None, stream: str = "digits") -> pd.DataFrame:
        folder = tmp_path / stream / method / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"final_average_accuracy": 0.5}))
        (played([2]) if rounds is None else rounds).to_parquet(folder / "rounds.parquet")
        if course is not None:
            course.to_parquet(folder / "course.parquet")
        runs.append({"stream": stream, "method": method, "seed": seed})
        return pd.DataFrame(runs)

    return add


def test_methods_are_compared_over_their_seeds(tmp_path, write):
    write("fedbe", 0, measured([[0.5, 0.9]]))
    write("fedbe", 1, measured([[0.7, 0.9]]), played([2], unit=3))
    runs = write("full", 0, measured([[0.1, 0.6]]), played([2], unit=4))
    (compared,) = over_time(tmp_path, runs)
    assert (compared.stream, compared.left_out) == ("digits", ())
    assert compared.targets == pytest.approx([0.95 * 0.6])
    assert compared.rows == [["fedbe", "6", "1.00"], ["full", "24", "4.00"]]
    header, _, fedbe, full, _, legend = to_markdown(compared).splitlines()
    assert header == "| method | time to target | relative to fedbe |"
    assert (fedbe, full) == ("| fedbe | 6 | 1.00 |", "| full | 24 | 4.00 |")
    assert "95%" in legend and "57.0 %" in legend and "without" not in legend
    screen = StringIO()
    Console(file=screen, width=120).print(to_rich(compared))
    for cell in ("relative to fedbe", "fedbe", "4.00", "57.0 %"):
        assert cell in screen.getvalue()


def test_a_method_that_was_not_measured_so_is_left_out_and_named(tmp_path, write):
    course = measured([[0.5, 0.9]])
    for method in ("fedbe", "full"):
        write(method, 0, course)
    write("local")
    write("old", 0, course, played([2]).drop(columns="simulated"))
    write("joint", 0, course, played([2]).assign(simulated=0.0))
    write("resumed", 0, course[course["round"] == 1])
    write("once", 0, course)
    (compared,) = over_time(tmp_path, write("once", 1))
    assert set(compared.courses) == {"fedbe", "full"}
    assert compared.left_out == ("joint", "local", "old", "once", "resumed")
    assert "joint, local, old, once, resumed" in to_markdown(compared)


def test_times_of_simulated_faults_are_compared_where_they_are_of_a_cost_model(tmp_path, write):
    course, rounds = measured([[0.5, 0.9]]), played([2]).assign(fault="")
    for method, experiment in (("fedbe", {"devices": {}}), ("fedavg", {})):  # fedavg's are in samples
        write(method, 0, course, rounds)
        (tmp_path / "digits" / method / "seed-0" / "run.json").write_text(json.dumps({"experiment": experiment}))
    (compared,) = over_time(tmp_path, write("full", 0, course))
    assert set(compared.courses) == {"fedbe", "full"} and compared.left_out == ("fedavg",)


def test_one_method_alone_is_no_comparison(tmp_path, write):
    write("fedbe", 0, measured([[0.5, 0.9]]))
    runs = write("full", 0, measured([[0.5, 0.9]]), stream="others")
    assert over_time(tmp_path, runs) == []
