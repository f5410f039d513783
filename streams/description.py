"""A stream in tables: what every client has in every experience, or an experience as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas

    from streams.stream import Stream


def describe(stream: Stream) -> pandas.DataFrame:
    """See `Stream.describe`."""
    import pandas

    cells = [(client, experience) for client in range(stream.clients) for experience in range(stream.experiences)]
    names = ["client", "experience"]
    if stream.layout is None:
        rows = [(stream.classes_of(*cell), len(stream.train(*cell)), len(stream.test(*cell))) for cell in cells]
        return pandas.DataFrame(rows, pandas.MultiIndex.from_tuples(cells, names=names), ["classes", "train", "test"])
    rows, patterns = [], stream.patterns
    for cell in cells:
        train, test = (
            np.bincount(patterns.of_label[stream.labels_of(found)], minlength=len(patterns.names))
            for found in (stream.train(*cell), stream.test(*cell))
        )
        there = np.unique(patterns.of_label[list(stream.classes_of(*cell))]).tolist()
        rows += [(*cell, patterns.names[place], train[place], test[place]) for place in there]
        rows += [(*cell, "none", 0, 0)] * (not there)
    return pandas.DataFrame(rows, columns=[*names, "task", "train", "test"]).set_index([*names, "task"])


def summary(stream: Stream) -> pandas.DataFrame:
    """See `Stream.summary`."""
    import pandas

    rows = []
    for experience in range(stream.experiences):
        there = np.flatnonzero(stream.plan.present(np.arange(stream.clients), experience))
        train = [len(stream.train(client, experience)) for client in there]
        sizes = (min(train), int(np.median(train)), max(train), sum(train), len(stream.test(None, experience)))
        met = np.array(stream.classes_in(experience), np.int64)
        met = met if stream.layout is None else np.unique(stream.patterns.of_label[met])
        rows.append((len(there), len(met), *sizes))
    what = "classes" if stream.layout is None else "tasks"
    names = ["clients", what, "fewest", "median", "most", "train", "test"]
    return pandas.DataFrame(rows, pandas.RangeIndex(stream.experiences, name="experience"), names)
