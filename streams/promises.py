"""What every manifest promises, checked once per build with pandera: nobody holds what the plan does not give."""

from __future__ import annotations

import numpy as np

from errors import InputError
from streams.manifest import PUBLIC, SPLITS, TASKS, TEST, TRAIN, Manifest, Names, to_pandas
from streams.pattern import Patterns
from streams.plan import EVERY, NEVER, Plan


def check(
    manifest: Manifest,
    labels: np.ndarray,
    plan: Plan,
    overlap: bool = False,
    groups: np.ndarray | None = None,
    patterns: Patterns | None = None,
) -> None:
    """Check all that the manifest promises.

    Args:
        labels: (N,) the source's labels.
        plan: from `scenario.plan`.
        overlap: a sample may come again in another experience.
        groups: (N,) whose a sample is by nature, or None.
        patterns: which tasks a client has; by default every client has the one task of an ordinary stream.
    Raises:
        InputError: names the promise that is broken and the first row that breaks it, or the empty client.
    """
    from pandera.errors import SchemaError

    patterns = patterns or Patterns.ordinary(plan.clients, plan.classes)
    try:
        _columns(labels, plan, patterns.names).validate(to_pandas(manifest, patterns.names))
        rows = _rows(manifest, labels, plan, overlap, groups, patterns)
        rows.validate(to_pandas(manifest, patterns.names))
    except SchemaError as error:
        cases = error.failure_cases
        first = "" if isinstance(cases, str) or cases["index"].isna().all() else f" (first at row {cases['index'][0]})"
        raise InputError(f"stream manifest: {error.check.error or error}{first}") from error
    missing = np.flatnonzero(np.bincount(manifest["sample"], minlength=len(labels)) == 0)
    if len(missing):
        raise InputError(f"stream manifest: sample {missing[0]} is given to nobody")
    trained = np.bincount(manifest["client"][manifest["split"] == TRAIN], minlength=plan.clients)
    empty = np.flatnonzero(trained == 0)
    if len(empty):
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(
            f"client {empty[0]}{others} is left with no training sample: {trained.sum()} samples are shared out among "
            f"{plan.clients} clients; use fewer clients, a larger partition.alpha or partition.min_share"
        )
    several = tuple(patterns.names) != TASKS
    for part, what in ((TRAIN, "training"), (TEST, "test"))[: 2 if several else 1]:
        there = np.zeros_like(patterns.held)
        rows = manifest["split"] == part
        there[manifest["client"][rows], manifest["task"][rows]] = True
        for client, task in np.argwhere(patterns.held & ~there)[:1]:
            raise InputError(
                f"client {client} is left with no {what} sample of its task {patterns.names[task]}; use fewer clients, "
                "more samples, a larger partition.alpha or partition.min_share"
                + ", or hold out more (test)"
                * (part == TEST)
            )
    tested = np.bincount(manifest["experience"][manifest["split"] == TEST], minlength=plan.experiences)
    if not tested.all():
        raise InputError(f"experience {np.flatnonzero(tested == 0)[0]} has no test sample; hold out more (test)")


def _columns(labels: np.ndarray, plan: Plan, tasks: Names):
    """Every column alone: its type and range."""
    from pandera.pandas import Category, Check, Column, DataFrameSchema

    def whole(name: str, below: int, least: int = 0) -> Column:
        error = f"{name} is outside {least}..{below - 1}"
        return Column("int64", Check.in_range(least, below, include_max=False, error=error), nullable=False)

    def one_of(name: str, words: tuple[str, ...]) -> Column:
        return Column(Category, Check.isin(words, error=f"{name} is not one of {words}"), nullable=False)

    return DataFrameSchema(
        {
            "sample": whole("a sample", len(labels)),
            "label": whole("a label", plan.classes),
            "task": one_of("a task", tasks),
            "client": whole("a client", plan.clients, -1),
            "experience": whole("an experience", plan.experiences, -1),
            "split": one_of("a split", SPLITS),
            "domain": whole("a domain", plan.experiences),
        },
        strict=True,
    )


def _rows(
    manifest: Manifest, labels: np.ndarray, plan: Plan, overlap: bool, groups: np.ndarray | None, patterns: Patterns
):
    """Columns together; all are in range by now."""
    import pandas
    from pandera.pandas import Check, DataFrameSchema

    sample, label, split = manifest["sample"], manifest["label"], manifest["split"]
    held = manifest["client"] >= 0
    client, experience = np.maximum(manifest["client"], 0), np.maximum(manifest["experience"], 0)
    home = plan.home_of(client, label)
    placed = (home == experience) | (home == EVERY)
    placed |= (split == TRAIN) & (plan.blur[label] > 0)
    time = sample * (plan.experiences + 1) + manifest["experience"] + 1 if overlap else sample

    def same(column: np.ndarray) -> np.ndarray:
        """Whether all rows of a sample say the same."""
        said = np.empty(len(labels), np.int64)
        said[sample] = column
        return said[sample] == column

    def promise(kept: np.ndarray, error: str) -> Check:
        return Check(lambda frame: pandas.Series(kept, frame.index), error=error)

    checks = [
        promise(
            ~pandas.Series(time).duplicated().to_numpy(), "a sample is given to two clients, experiences or splits"
        ),
        promise(same(split) & same(manifest["client"]), "a sample is given to two clients or splits"),
        promise(label == labels[sample], "a label is not the source's"),
        promise((split != PUBLIC) == held, "a public sample belongs to a client, or another sample to none"),
        promise(manifest["task"] == patterns.of_label[label], "a task is not the one whose label it is"),
        promise(
            ~held | patterns.held[client, patterns.of_label[label]],
            "a client holds a sample of a task that its pattern has not",
        ),
        promise(~held | (home != NEVER), "a class is held by a client that never meets it"),
        promise(
            np.where(held, placed & (manifest["experience"] >= 0), manifest["experience"] == -1),
            "a class is not in the experience where the scenario puts it",
        ),
        promise(~held | plan.present(client, experience), "a client holds a sample of an experience when it is absent"),
        promise(
            manifest["domain"] == np.where(held, plan.domain_of(client, experience), 0),
            "a domain is not the one of its client and experience",
        ),
    ]
    if groups is not None:
        checks.append(promise(~held | (groups[sample] == client), "a sample is not with the client it belongs to"))
    return DataFrameSchema(checks=checks)
