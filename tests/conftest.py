"""A small project on digits, and a laboratory that plays whole experiments in it without Prefect, MLflow or processes.

The laboratory calls the functions that the tasks call, in the order in which the flow submits them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # plain `pytest` sees tests/ first, whose folders have the names of the packages they test

settings.register_profile("fcl", deadline=None)
settings.load_profile("fcl")

DIGITS = {
    "source": "digits",
    "clients": 3,
    "experiences": 3,
    "partition": {"kind": "dirichlet", "alpha": 1.0, "min_share": 0.1},
    "public": 0.6,
    "test": 0.3,
    "foundation": {"general": ["parity", "above_four"]},
}
LEARNING = {
    "digits": DIGITS,
    "single": DIGITS | {"clients": 1, "experiences": 1},
    "own": DIGITS | {"order": "own"},
}
# On the others nobody asks how good the foundation model is.
QUICK = DIGITS | {"foundation": DIGITS["foundation"] | {"pretraining": {"epochs": 2}}}
STREAMS = LEARNING | {
    "alone": QUICK | {"clients": 1},
    "short": QUICK | {"experiences": 1},
    "tasks": QUICK | {"scenario": "task-incremental", "order": "own"},
    "domains": QUICK | {"scenario": "domain-incremental", "domain": {"kind": "rotation"}, "clients": 2},
    "late": QUICK | {"lag": 0.9, "experiences": 2},
    "growing": QUICK | {"growth": {"initial": 2, "join": 1, "leave": 1}, "order": "own"},
    "joining": QUICK
    | {"scenario": "task-incremental", "order": "own", "growth": {"initial": 1, "join": 1, "leave": 0}},
    "texts": {
        "source": "parquet:texts.parquet",
        "text": "text",
        "length": 40,
        "clients": 2,
        "experiences": 2,
        "public": 0.2,
        "model": {"name": "text_transformer", "vocabulary": 64, "tokens": 8, "width": 8, "heads": 2, "depth": 1},
        "foundation": {
            "general": ["even"],
            "network": {"name": "text_transformer", "vocabulary": 64, "tokens": 8, "width": 8, "heads": 2, "depth": 2},
        },
    },
    "several": {  # clients have tasks of their own
        "source": "tasks",
        "scenario": "multi-task",
        "multitask": {
            "images": "digits",
            "tasks": ["digit", "redraw", "value", "answer", "phrase"],
            "patterns": [["digit", "redraw"], ["value", "phrase"], ["answer", "digit"]],
            "per_task": 60,
        },
        "clients": 3,
        "experiences": 1,
        "model": {"name": "multimodal", "width": 8, "heads": 2, "tokens": 8, "vocabulary": 64},
        "train": {"optimizer": "adamw", "learning_rate": 0.003},
    },
    "later": {},  # the same, one task after another
    "taught": {},  # the same, from a foundation model
    "devices": QUICK | {"scenario": "self-centred", "arrival": "round-robin", "partition": {"kind": "iid"}},
    "skewed": QUICK | {"partition": {"kind": "dirichlet", "alpha": 0.02}, "seed": 9},  # some have nothing at times
}
STREAMS["later"] = STREAMS["several"] | {"experiences": 2}
STREAMS["taught"] = STREAMS["several"] | {  # by public records: their network is pre-trained
    "public": 0.25,
    "model": STREAMS["several"]["model"] | {"rank": 2},
    "foundation": {"network": STREAMS["several"]["model"], "pretraining": {"epochs": 3, "learning_rate": 0.003}},
}


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture
def call_fcl(monkeypatch, capsys):
    """`fcl ARGUMENTS` in a folder, in this process: (exit status, stdout, stderr)."""
    import cli

    def call(folder: Path, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["fcl", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def small_project(tmp_path_factory):
    """A project folder with the repository's params.yaml made small, its streams built. Shared: only read it."""
    from parameters import stream_parameters
    from streams.stream import build

    folder = tmp_path_factory.mktemp("small") / "project"
    folder.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["streams"] = STREAMS
    params["model"] = {"name": "mlp", "width": 16}
    params["train"] |= {"rounds": 2, "local_epochs": 1, "batch_size": 16}
    params["methods"]["feddf"] |= {"steps": 5, "batch_size": 64}
    for name in ("dac", "dmc"):
        params["methods"][name]["consolidation"] |= {"iterations": 4, "batch_size": 8}
    for name in ("fedcurv", "full_fedcurv", "full_fedewc"):
        params["methods"][name] |= {"fisher_samples": 8}
    for name in ("fedbe", "fedbe_static", "fedbe_random"):
        params["methods"][name] |= {"added": 2}
    params["foundation"] |= {"network": {"name": "mlp", "width": 40, "depth": 1}}
    params["foundation"]["pretraining"] |= {"epochs": 10, "learning_rate": 0.005}
    params["methods"]["large_small"] |= {"rank": 4}
    params["methods"]["large_small"]["surrogate"] |= {"per_class": 10}
    params["methods"]["target"]["synthesis"] |= {"rounds": 2, "batch": 32, "steps": 3, "width": 4, "student_steps": 3}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    words = ("federation", "continual", "learning", "memory")  # the class of a text is its first word
    texts = {"text": [f"{words[i % 4]} and number {i}" for i in range(160)], "label": [i % 4 for i in range(160)]}
    texts["even"] = [(i // 4) % 2 for i in range(160)]  # the general task of its foundation model
    pq.write_table(pa.table(texts), folder / "texts.parquet")
    for name in STREAMS:
        build(name, stream_parameters(params, name), folder)
    return folder


@pytest.fixture
def project(small_project, tmp_path):
    """A copy of the small project that a test may change, without the foundation models other tests have made there."""
    without = shutil.ignore_patterns("foundations")
    return Path(shutil.copytree(small_project, tmp_path / "project", ignore=without))


# Imports of `tasks` are inside: they bring Prefect, whose seconds the tests of streams and metrics should not pay.


class Laboratory:
    """One experiment, played in this process, one client after the other.

    Attributes:
        site: the experiment's stream, method and store.
        progress: the next moment and the references to the server's and the clients' states.
        rows: records of accuracy so far.
        general: records of accuracy in the foundation model's general tasks.
        tables: what the server decided before the rounds, and the clients in them: `Method.tables`, `Update.tables`.
        measures: of each task, where there are several.
        rounds: (moment, trained clients, verdicts) of each round so far.
    """

    def __init__(self, experiment, root: Path, store: str, foundation: str | None = None) -> None:
        from methods import Moment
        from tasks.checkpoint import Progress
        from tasks.site import Place, Site, prepare_process

        prepare_process()
        self.experiment = experiment
        foundation = foundation_name(experiment, root) if foundation is None else foundation
        self.place = Place(experiment, root, store, foundation=foundation)
        self.site = Site(self.place)
        self.progress = Progress(Moment(0, 0), self.site.write(self.site.method.start()))
        self.rows: list[dict] = []
        self.rounds: list[tuple] = []
        self.general: list[dict] = []
        self.tables: dict[str, list[dict]] = {}
        self.measures: list[dict] = []

    @property
    def moment(self):
        return self.progress.next

    @property
    def over(self) -> bool:
        return self.moment.experience == self.site.stream.experiences

    @property
    def last_round(self) -> bool:
        return self.moment.round == self.site.rounds_in(self.moment.experience) - 1

    @property
    def server(self):
        """The server's state, read from the store."""
        return self.site.read(self.progress.server)

    def client(self, number: int):
        """A client's state, read from the store."""
        return self.site.read(self.progress.clients[number])

    def train(self) -> list:
        """The first half of a round: sampling, broadcast, training, upload."""
        from tasks.round import sample_clients
        from tasks.training import Assignment, train_one
        from tasks.upload import open_round

        clients = sample_clients(self, self.moment)  # asks of a run no more than its site and its experiment
        self.progress.server, broadcasts, tables = open_round(self.site, self.progress.server, clients, self.moment)
        for name, rows in tables.items():
            self.tables.setdefault(name, []).extend(rows)
        kept = self.progress.clients
        assignments = [Assignment(client, broadcasts[client], kept.get(client)) for client in clients]
        return [train_one(self.site, self.moment, each, self.last_round) for each in assignments]

    def claims(self, trained) -> list:
        from tasks.upload import Claim

        return [
            Claim(each.client, each.upload, each.broadcast.digest if each.broadcast else None)
            for each in trained
            if each.upload
        ]

    def admit(self, claims) -> list:
        from tasks.upload import admit

        return admit(self.site, self.progress.server, self.moment, claims)

    def fuse(self, verdicts):
        """The reference to the next server state."""
        from tasks.fusion import fuse, fuse_all, join

        common = (self.progress.server, verdicts, self.moment)
        jobs = self.site.method.fusion_jobs([each.client for each in verdicts], self.moment) if verdicts else ()
        if len(jobs) <= 1:
            return fuse_all(self.site, *common, self.last_round)
        parts = {job: fuse(self.site, job, *common) for job in jobs}
        return join(self.site, self.progress.server, parts, self.moment, self.last_round)

    def advance(self, trained, verdicts, server) -> None:
        from methods import Moment

        experience, number = self.moment
        refused = {verdict.client for verdict in verdicts if not verdict.admitted}
        self.rounds.append((self.moment, trained, verdicts))
        self.rows += [row for each in trained for row in each.accuracies]
        self.progress.clients |= {
            each.client: each.state for each in trained if each.state and each.client not in refused
        }
        for each in trained:
            self.tell(each)
        self.progress.server = server
        if self.last_round:
            if experience == self.site.stream.experiences - 1:
                self.finish()
            self.evaluate(experience)
            self.progress.next = Moment(experience + 1, 0)
        else:
            self.progress.next = Moment(experience, number + 1)

    def tell(self, trained) -> None:
        """Keeps what a client decided."""
        for name, rows in trained.tables.items():
            place = {**self.moment._asdict(), "client": trained.client}
            self.tables.setdefault(name, []).extend({**place, **row} for row in rows)

    def finish(self) -> None:
        """The last step of every client, as `finish_clients`."""
        from methods import Moment
        from tasks.finishing import finish_one
        from tasks.training import Assignment
        from tasks.upload import open_round

        last = self.site.stream.experiences - 1
        moment = Moment(last, self.site.rounds_in(last))
        clients = self.site.method.participants
        if self.site.method.finishes:
            opening = open_round(self.site, self.progress.server, clients, moment)
            for client in clients:
                kept = self.progress.clients.get(client)
                done = finish_one(self.site, Assignment(client, opening.broadcasts[client], kept))
                assert not done.error, done.trace
                self.progress.clients[client] = done.state
                self.tell(done)

    def evaluate(self, trained: int) -> None:
        from tasks.evaluation import evaluate, evaluate_general, units

        found = evaluate(self.site, self.progress.server, self.progress.clients, trained, units(self.site))
        self.rows += found.accuracy
        self.measures += found.tasks
        self.general += evaluate_general(self.site, self.progress.server, trained)

    def play_round(self) -> None:
        trained = self.train()
        verdicts = self.admit(self.claims(trained))
        self.advance(trained, verdicts, self.fuse([verdict for verdict in verdicts if verdict.admitted]))

    def play(self, until: tuple[int, int] | None = None) -> Laboratory:
        """Plays to the end, or to the moment (experience, round), which is then the next."""
        if not self.rounds and not self.rows:
            self.evaluate(-1)
        while not self.over and (until is None or self.moment < until):
            self.play_round()
        return self

    def reopen(self) -> None:
        """What a killed run's successor has: a fresh site, the progress as JSON, and the states it refers to."""
        from tasks.checkpoint import Progress
        from tasks.site import Site

        store = self.site.store
        for kind in ("uploads", "broadcasts"):
            store.keep_only(kind, ())
        store.keep_only("states", {self.progress.server, *self.progress.clients.values()})
        self.progress = Progress.from_json(json.loads(json.dumps(self.progress.to_json())))
        self.site = Site(self.place)

    @property
    def digest(self) -> str:
        """SHA-256 over all server and client states, as `Run.digest`."""
        from tasks.run import Run

        return Run.digest(self)

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes up and down in all."""
        trained = [each for _, clients, _ in self.rounds for each in clients]
        up = sum(each.upload.size for each in trained if each.upload)
        return up, sum(each.broadcast.size for each in trained if each.broadcast)


def foundation_name(experiment, root: Path) -> str:
    """The folder's name of the experiment's foundation model, made if need be; empty where it needs none."""
    from tasks.run import foundation_of

    built = foundation_of(experiment, root)
    return built.folder.name if built else ""


def transformer(method: str, stream: str) -> list[str]:
    """What gives a method that fine-tunes transformers a small one."""
    import methods
    from methods.tuning import FineTuning

    if not issubclass(methods.get(method), FineTuning) or stream == "texts":  # whose foundation model is one
        return []
    return [f"foundation.network.{key}" for key in ("name=vit_tiny", "width=16", "depth=2", "heads=2", "patch=4")]


@pytest.fixture(scope="session")
def laboratory(small_project, tmp_path_factory):
    """Opens an experiment: `laboratory("fedavg", "digits", seed=0, sets=["train.rounds=1"])`."""
    from parameters import experiment

    folder, number = tmp_path_factory.mktemp("stores"), itertools.count()
    parse, known = functools.cache(yaml.safe_load), {}

    def open_one(method: str, stream: str = "digits", seed: int = 0, sets=()) -> Laboratory:
        key = (method, stream, seed, *sets)
        if key not in known:
            every = [*transformer(method, stream), *sets]
            # To parse params.yaml takes a third of a small experiment's time: each text is parsed once.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(yaml, "safe_load", lambda text: copy.deepcopy(parse(text)))
                spec = experiment(method, stream, seed, every, small_project, device="cpu")
                known[key] = spec, foundation_name(spec, small_project)
        spec, foundation = known[key]
        return Laboratory(spec, small_project, str(folder / str(next(number))), foundation)

    return open_one


@pytest.fixture(scope="session")
def played(laboratory):
    """A finished experiment, played once for all tests that ask for it: they must not change it."""
    known: dict[str, Laboratory] = {}

    def get(method: str, stream: str = "digits", seed: int = 0, sets=()) -> Laboratory:
        key = hashlib.sha256(repr((method, stream, seed, tuple(sets))).encode()).hexdigest()
        if key not in known:
            known[key] = laboratory(method, stream, seed, sets).play()
        return known[key]

    return get
