"""Small models teach each other at the server: what each says about the surrogate set, and how one learns (R2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .base import Setting, Upload
from .collaboration import Collaboration
from .fine_tuning import choose
from .one_by_one import Lesson, View, learn
from .state import Moment
from .surrogate import logits_on
from .training import LocalData


class Views:
    """What clients' uploads say about D_s, remembered until the next round: every job of a fusion asks for all.

    Args:
        surrogate: gives D_s.
        send: whether an upload holds the client's weights, or its logits on D_s.
    """

    def __init__(
        self, setting: Setting, surrogate: Callable[[], LocalData], send: Literal["weights", "logits"]
    ) -> None:
        self.setting, self.surrogate, self.send = setting, surrogate, send
        self.known: tuple[Moment | None, dict[int, View]] = (None, {})

    def __call__(self, upload: Upload, moment: Moment) -> View:
        if self.known[0] != moment:
            self.known = (moment, {})
        views, device = self.known[1], self.setting.device
        if upload.client not in views:
            message = upload.message
            if self.send == "logits":
                logits = message.tensors["logits"].to(device)
            else:
                logits = logits_on(self.setting.load(message.part("model"), upload.client), self.surrogate())
            views[upload.client] = View(logits, message.tensors["seen"].to(device))
        return views[upload.client]


def learn_lessons(
    model: nn.Module,
    before: View,
    found: Sequence[Lesson],
    data: LocalData,
    params: Collaboration,
    draw: torch.Generator,
) -> None:
    """A small model learns from its teachers one by one, anchored to what it said before, in place.

    Only what the client trains (`trains`) learns here too. One Adam goes through all visits, its moments with it.
    """

    def student(rows: Tensor) -> Tensor:
        return model(data.batch(rows).inputs)

    still = choose(model.train(), params.trains)
    for each in still:
        each.eval()
    learns = [each for each in model.parameters() if each.requires_grad]
    learn(student, learns, data, found, lambda: before, params.distillation, draw, by_class=params.surrogate.labelled)
    model.requires_grad_(True)
