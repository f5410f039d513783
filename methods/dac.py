"""Data-agnostic consolidation."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from validation import Section

from .base import Setting, register
from .consolidation import Teacher, consolidate
from .consolidation_data import DataParameters, Images, images
from .consolidation_parameters import LatentParameters
from .experts import Experts
from .state import Message, State, prefixed


@register("dac")
class DAC(Experts):
    """Data-agnostic consolidation: experts become one model without their data, one after another.

        e_t <- f_{t-1}, trained on D_t           f_t <- f_{t-1},   L = L_KD + lambda L_PLD       (`consolidation.py`)

    The images are anything but the devices' data (`consolidation_data.py`).

    [paper] double distillation in outputs and projected latent space, experts one after another, one image as data:
    Carta et al., arXiv 2303.15888. [ours] normalisation, layers and weights, which were not available.
    """

    class Params(Experts.Params):
        data: DataParameters = Field(default_factory=DataParameters, description="images to consolidate on")
        consolidation: LatentParameters = Field(
            default_factory=LatentParameters, description="the double distillation at the centre"
        )

    @classmethod
    def is_oracle(cls, params: Section) -> bool:
        return params.data.source == "original" and params.data.allow_oracle

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        self._images: Images | None = None

    def images(self, experience: int) -> Images:
        """The consolidation data, read once; an oracle's are others in every experience."""
        if self.params.data.source == "original":
            return images(self.params.data, self.setting, experience)
        if self._images is None:
            self._images = images(self.params.data, self.setting, experience)
        return self._images

    def start(self) -> State:
        self.images(0)  # what is wrong with the source is said before any training
        return super().start()

    def add(self, server: State, message: Message, names: tuple, begun: State | None) -> Iterator[State]:
        previous = Teacher(server.part("model"), server.tensors["seen"])
        expert = Teacher(message.part("model"), message.tensors["classes"])
        source = self.images(names[0])
        about = self.params.consolidation
        for work in consolidate(previous, expert, source, about, self.setting, ("consolidation", *names), begun):
            if work.values["iteration"] < about.iterations:
                yield work
        yield State(prefixed("model", work.part("student")))
