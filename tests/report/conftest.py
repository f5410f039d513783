"""A folder of results as runs leave it, with numbers that a test chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from metrics.summary import summarise
from metrics.task_measures import task_measures

CLIENTS = 3
START = 0.95  # accuracy after the first experience
EXPERIMENT = {
    "models": [{"name": "mlp", "width": 16}],
    "train": {"rounds": 2, "local_epochs": 1, "augmentation": {"flip": False}},
    "method_parameters": {},
    "stream_parameters": {
        "source": "digits",
        "scenario": "class-incremental",
        "clients": CLIENTS,
        "experiences": 3,
        "order": "shared",
        "partition": {"kind": "dirichlet", "alpha": 0.5},
    },
}


class Tree:
    """Results below `root`; each `run` writes the files of one.

    Attributes:
        root: the project's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def results(self) -> Path:
        return self.root / "results"

    def run(
        self,
        method: str,
        seed: int = 0,
        final: float = 0.5,
        stream: str = "digits",
        experiences: int = 3,
        sent: int = 1_000_000,
        simulated: float = 0.0,
        cost_model: bool = True,
        tasks: dict[tuple[str, str], float] | None = None,
        **about: object,
    ) -> Path:
        """A run whose accuracy falls from `START` to `final`; clients are 0, 1, 2 points better than the server's."""
        folder = self.results / stream / method / f"seed-{seed}"
        folder.mkdir(parents=True)
        matrix = _matrix(final, experiences)
        rounds = _rounds(experiences, sent, simulated)
        metrics = summarise(matrix, rounds, "global")
        if tasks:
            rows = [
                {"model": "global", "client": client, "trained": 0, "tested": 0, "task": task, "measure": measure}
                | {"value": value, "samples": 10}
                for (task, measure), value in tasks.items()
                for client in range(CLIENTS)
            ]
            metrics |= task_measures(pd.DataFrame(rows), "global")
        matrix.to_parquet(folder / "accuracy_matrix.parquet", index=False)
        rounds.to_parquet(folder / "rounds.parquet", index=False)
        if simulated:
            course = rounds[["experience", "round"]].drop_duplicates().assign(tested=0, accuracy=final, samples=10)
            course.to_parquet(folder / "course.parquet", index=False)
        experiment = EXPERIMENT | {"method": method, "stream": stream, "seed": seed}
        if simulated and cost_model:
            experiment["devices"] = {"speed": 1}
        said = {
            "digest": f"{len(method) % 10}" * 64,
            "experiment": experiment,
            "git_clean": True,
            "git_commit": "c0ffee" * 7,
            "main_model": "global",
            "method": method,
            "mlflow_run": "f00d" * 8,
            "seed": seed,
            "stream": stream,
            "stream_digest": "abc123" * 10,
            "versions": {"torch": "2.14.1"},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "run.json").write_text(json.dumps(said | about))
        return folder


def _matrix(final: float, experiences: int) -> pd.DataFrame:
    last = experiences - 1
    rows = []
    for trained in range(-1, experiences):
        fallen = START - (START - final) * trained / last if last else final
        for tested in range(experiences):
            value = fallen if tested <= trained else 0.1
            rows.append(("global", -1, trained, tested, value, 30))
            rows += [("received", client, trained, tested, value + client / 100, 10) for client in range(CLIENTS)]
    return pd.DataFrame(rows, columns=["model", "client", "trained", "tested", "accuracy", "samples"])


def _rounds(experiences: int, sent: int, simulated: float) -> pd.DataFrame:
    rows = [
        {"experience": experience, "round": number, "client": client, "samples": 10, "steps": 1, "loss": 0.5}
        | {"bytes_up": sent, "bytes_down": sent, "seconds": 1.0, "simulated": simulated}
        | {"admitted": True, "reason": ""}
        for experience in range(experiences)
        for number in range(2)
        for client in range(CLIENTS)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def tree(tmp_path):
    """No results yet: `tree.run("fedavg", seed=0, final=0.5)` writes a run's."""
    return Tree(tmp_path)


@pytest.fixture
def project_tree(project):
    """The same in a project folder."""
    return Tree(project)


@pytest.fixture
def several(tree):
    """Three methods with three seeds, the best of which sends nothing."""
    for seed, noise in enumerate((0.0, 0.01, -0.02)):
        tree.run("fedavg", seed, 0.3 + noise)
        tree.run("fedlwf", seed, 0.6 - 2 * noise, sent=2_000_000)
        tree.run("joint", seed, 0.9, sent=0)
    return tree
