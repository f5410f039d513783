"""Which part of a network of several tasks is used by which: one table for sending, fusion and replacement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from multitask import Layout, Task

FUSION = ("projection", "transformer", "experts")  # what lies between the encoders and the heads


def used_by(task: Task) -> list[str]:
    """The components that a sample of `task` passes, from its encoders to its head.

    For each modality m of task o: its encoder; the shared projection and transformers; on the four paths the experts
    that all share, of the task, of the modality and of the pair (m, o); then the second expert of the modality; the
    head.
    """
    found = [f"encoders.{modality}" for modality in task.modalities]
    found += ["projection", "transformer", "experts.shared", f"experts.task.{task.name}"]
    for modality in task.modalities:
        found += [f"experts.modality.{modality}", f"experts.pair.{modality}.{task.name}", f"experts.second.{modality}"]
    return [*found, f"head.{task.name}"]


def table(layout: Layout, tasks: Collection[str] | None = None) -> dict[str, tuple[str, ...]]:
    """component -> names of the tasks that use it, in the layout's order; of `tasks` alone if given."""
    users: dict[str, tuple[str, ...]] = {}
    for task in layout.tasks:
        if tasks is None or task.name in tasks:
            for component in used_by(task):
                users[component] = (*users.get(component, ()), task.name)
    return users


def of(tensors: Iterable[str], components: Collection[str]) -> list[str]:
    """The names among `tensors` that belong to one of the components."""
    return [name for name in tensors if any(name.startswith(f"{component}.") for component in components)]


def replaced(own: Mapping[str, Tensor], by: Mapping[str, Tensor], components: Collection[str]) -> dict[str, Tensor]:
    """`own` with the tensors of these components taken from `by`."""
    return {**own, **{name: by[name] for name in of(own, components)}}
