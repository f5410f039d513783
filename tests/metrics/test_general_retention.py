"""What is left of a foundation model's general tasks: after the last experience, over before the first."""

from __future__ import annotations

import pandas as pd
import pytest

from metrics.retention import general_retention


def rows(**courses: list[float]) -> pd.DataFrame:
    found = [
        {"task": task, "trained": trained - 1, "accuracy": accuracy, "samples": 9}
        for task, course in courses.items()
        for trained, accuracy in enumerate(course)
    ]
    columns = ["task", "trained", "accuracy", "samples"]
    return pd.DataFrame(found, columns=columns).iloc[::-1]  # whoever finished last comes first


def test_it_is_the_mean_over_tasks_of_after_over_before():
    found = general_retention(rows(parity=[0.8, 0.1, 0.6], size=[0.5, 0.9, 0.55]))
    assert found.pop("general_retention") == pytest.approx((0.75 + 1.1) / 2)
    assert found == {
        "general.parity.before": 0.8,
        "general.parity.after": 0.6,
        "general.size.before": 0.5,
        "general.size.after": 0.55,
    }


def test_a_task_that_was_never_done_is_left_out_of_the_mean():
    assert general_retention(rows(parity=[0.8, 0.4], size=[0.0, 0.3]))["general_retention"] == pytest.approx(0.5)
    assert "general_retention" not in general_retention(rows(size=[0.0, 0.3]))
    assert general_retention(rows()) == {}
