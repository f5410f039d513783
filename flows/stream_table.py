"""What `fcl stream` prints of a built stream."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from streams.stream import Stream

MOST_LINES = 120  # of clients and experiences; a longer stream is summed up


def print_stream(built: Stream, console: Console) -> None:
    """The stream in words, then a line per client and experience, or per experience where these would be many."""
    size = " x ".join(map(str, built.shape))
    samples = f"images ({size})" if built.modality == "image" else f"{built.modality}s of {size} bytes"
    tasks = (
        f"{len(built.layout.tasks)} tasks with {built.classes} labels" if built.layout else f"{built.classes} classes"
    )
    console.print(
        f"[bold]{built.name}[/]: {len(built.inputs)} {samples}, {tasks}, "
        f"{built.clients} clients, {built.experiences} experiences, {len(built.public())} public samples"
    )
    console.print(f"digest {built.digest}", highlight=False)
    for task in built.layout.tasks if built.layout else ():
        labels = f", labels {task.first} to {task.labels[-1]}" if task.classes > 1 else f", label {task.first}"
        console.print(f"task {task.name}: {' and '.join(task.modalities)} -> {task.target}{labels}", highlight=False)
    if built.clients * built.experiences > MOST_LINES:
        console.print("training samples of a client: fewest, median, most; train, test: of all clients together")
        about = built.summary().reset_index()
    else:
        about = built.describe().reset_index()
        if "classes" in about:
            about["classes"] = [row if len(row) <= 10 else f"{len(row)} classes" for row in about["classes"]]
    table = Table(*[str(column) for column in about.columns])
    for row in about.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)
