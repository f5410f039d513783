"""TAP: two-stage adaptive personalisation across tasks and modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from models.components import FUSION, replaced, used_by
from multitask import Task
from validation import Section

from .base import Setting, register
from .fedavg import FedAvg
from .fedavg_ft import FedAvgFT
from .objectives import losses, matched, task_named, total
from .state import Message, State, prefixed
from .training import Batch, Client, TrainParameters, Update, fit


class Distillation(Section):
    """Stage 2, after all rounds."""

    weight: float = Field(0.002, ge=0, description="lambda_o, weight of the teacher's answers; 0 is plain fine-tuning")
    text_classes: float = Field(1.0, ge=0, description="factor of the weight for text classification")
    epochs: int = Field(
        3, ge=0, description="passes in which the personal model learns from data and teacher; 0 is none"
    )


@register("tap", multitask=True)
class TAP(FedAvgFT):
    """Two-stage adaptive personalisation: take what the federation does better, then learn from it.

    Stage 1, client i in a round, tasks o of its data; w: its part of the server's model; x_i: its own, never sent:
        w trained on its minibatches,           h_l[o] = mean over batches of share_o L_o(w)
        if h_l[o] + margin_o < h_p[o]:          x_i <- w in every component that o uses   (`models.components`)
        x_i trained as long,                    h_p[o] = the same of x_i; h_p = inf before the first time
        only w is sent; each component of the server's model is the mean over the clients that hold it, weighted by n_i.
    Stage 2, after all rounds: T_i, the last server model fine-tuned for `tuning_epochs`, is frozen, and
        x_i <- argmin  sum_o share_o L_o(x_i) + lambda_o D_o( T_i, x_i ),
    D_o: KL( softmax T_i || softmax x_i ) of classes and words at temperature 1, of images the mean squared difference.

    Lee et al., TAP, 2025. [paper] the two stages; [code] losses as they are compared, margins (0.01 or 0.02, half for
    text classes and image reconstruction; here 0), lambda 0.002 (times 500 for text classes; here 1), and that
    minibatches of x_i are w's unless something was replaced; [ours] the reduced network, passes over the data instead
    of a number of minibatches, no accumulation of gradients, x_i <- the server's model at stage 2 where a client
    never took part, and in an ordinary stream, which has one task, all is replaced or nothing.

    [ours] With `last_replacement` stage 2 begins with stage 1's comparison, T_i and its losses in the place of w's:
        if h_l[o] + margin_o < h_p[o]:          x_i <- T_i in every component that o uses.

    `stage1` is x_i before stage 2. With `as_released` two defects of the released code come back (no part of the fusion
    reaches clients: theirs begins at the common start every time; experts of a classification task are never
    replaced), and images are compared by the softmax of their rows of pixels.
    """

    evaluates: ClassVar = {"personal": "client", "stage1": "client", "global": "server"}

    class Params(FedAvgFT.Params):
        margin: float | Literal["never", "always"] = Field(
            0.0, description="by which the federation's loss must be lower; never and always stand for +inf and -inf"
        )
        last_replacement: bool = Field(
            False, description="stage 2 begins with stage 1's comparison, the teacher in the place of w"
        )
        distillation: Distillation = Field(default_factory=Distillation, description="stage 2")
        as_released: bool = Field(False, description="with the defects of the released code, for comparison")

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        if params.as_released and not setting.parts:
            raise InputError("methods.tap.as_released is about components: it needs a stream of several tasks")

    # stage 1

    def train(self, client: Client) -> Update:
        received = self.begin(client)
        shared, federated = self.learn(received, client, self.setting.train)
        own = client.state.part("model") or self.setting.initial_model(self.setting.place(client.id))
        better = self.better(received, federated, before := self.last_losses(client))
        model = self.setting.load(self.renewed(own, received, better, client.id), client.id)
        again, personal = self.learn(model, replace(client, draws="personal") if better else client, self.setting.train)
        state = State(
            prefixed("model", self.setting.state(model, client.id)),
            {"losses": {**before, **personal}, "experience": client.moment.experience},
        )
        rows = [
            {"task": task, "federated": loss, "personal": before.get(task), "replaced": task in better}
            for task, loss in federated.items()
        ]
        return replace(shared, state=state, steps=shared.steps + again.steps, tables={"replacements": rows})

    def last_losses(self, client: Client) -> Mapping[str, float]:
        """h_p; none of an earlier experience, whose samples were others."""
        kept = client.state.values
        return kept["losses"] if kept.get("experience") == client.moment.experience else {}

    def begin(self, client: Client) -> nn.Module:
        received = client.received.part("model")
        if self.params.as_released and self.setting.parts:
            first = self.setting.initial_model(self.setting.place(client.id))
            received |= {name: each for name, each in first.items() if name.partition(".")[0] in FUSION}
        return self.setting.load(received, client.id)

    def learn(self, model: nn.Module, client: Client, train: TrainParameters) -> tuple[Update, dict[str, float]]:
        """Trains the model in place; with it each task's loss, mean over batches of its share times its loss."""
        sums: dict[str, Tensor] = {}

        def objective(model: nn.Module, batch: Batch) -> Tensor:
            found = losses(model, batch, client.candidates)
            for task, loss in found.items():
                sums[task] = sums.get(task, 0) + loss.share * loss.value.detach()
            return total(found)

        loss, steps = fit(model, client, train, objective)
        message = Message(prefixed("model", self.setting.state(model, client.id)))
        return Update(State(), message, model, loss, steps), {task: float(each) / steps for task, each in sums.items()}

    def better(self, model: nn.Module, federated: Mapping[str, float], personal: Mapping[str, float]) -> list[str]:
        """The tasks for which the federation's model has the lower loss."""
        return [task for task, loss in federated.items() if self.is_better(task, loss, personal.get(task), model)]

    def renewed(self, own: Mapping[str, Tensor], model: nn.Module, tasks: Sequence[str], client: int):
        """`own` with what these tasks use taken from the model."""
        theirs = self.setting.state(model, client)
        for name in tasks:
            own = self.replaced(own, theirs, task_named(model, name))
        return own

    def is_better(self, task: str, federated: float, personal: float | None, model: nn.Module) -> bool:
        """h_l + margin < h_p."""
        margin = self.params.margin
        if isinstance(margin, str):
            return margin == "always"
        about = task_named(model, task)
        easy = about is not None and (
            about.target == "image" or (about.target == "class" and about.modalities == ("text",))
        )
        return personal is None or federated + (margin / 2 if easy else margin) < personal

    def replaced(self, own: Mapping[str, Tensor], by: Mapping[str, Tensor], task: Task | None) -> dict[str, Tensor]:
        """`own` with all that a sample of the task passes taken from `by`."""
        if task is None:
            return dict(by)
        components = used_by(task)
        if self.params.as_released and task.target == "class":
            components = [
                each for each in components if not (each.startswith("experts.") and each.endswith(f".{task.name}"))
            ]
        return replaced(own, by, components)

    # stage 2

    def finish(self, client: Client) -> Update:
        p = self.params.distillation
        teacher = self.begin(client)
        taught, federated = self.learn(teacher, client, self.last_train(self.params.tuning_epochs))
        teacher.eval().requires_grad_(False)
        own = client.state.part("model") or client.received.part("model")
        begin = own
        if self.params.last_replacement:
            better = self.better(teacher, federated, self.last_losses(client))
            begin = self.renewed(own, teacher, better, client.id)
        model = self.setting.load(begin, client.id)
        loss, steps = 0.0, 0
        if p.epochs:
            train, again = self.last_train(p.epochs), replace(client, draws="distillation")
            loss, steps = fit(model, again, train, self.taught(teacher, client))
        states = {**prefixed("stage1", own), **prefixed("model", self.setting.state(model, client.id))}
        return Update(State(states, client.state.values), None, model, loss, steps + taught.steps)

    def taught(self, teacher: nn.Module, client: Client):
        """sum_o share_o L_o + lambda_o D_o."""
        p, released = self.params.distillation, self.params.as_released

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            value = total(losses(model, batch, client.candidates))
            if not p.weight:
                return value
            for name, distance in matched(model, teacher, batch, client.candidates, released).items():
                task = task_named(model, name)
                texts = task is not None and task.target == "class" and task.modalities == ("text",)
                value = value + p.weight * (p.text_classes if texts else 1.0) * distance.value
            return value

        return loss

    # what is measured

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        if kind == "global":
            return FedAvg.predictor(self, kind, server, client, holder)
        if kind == "stage1" and client.part("stage1"):
            return self.setting.load(client.part("stage1"), holder)
        return super().predictor(kind, server, client, holder)
