"""Deep model consolidation."""

from __future__ import annotations

from pydantic import Field

from .base import register
from .consolidation_parameters import ConsolidationParameters
from .dac import DAC


@register("dmc")
class DMC(DAC):
    """Deep model consolidation: double distillation of the outputs alone.

        f_t <- argmin 1/|C| || s(x) - y(x) ||^2        y: both teachers' logits, each minus its mean

    DAC with lambda = 0. [field] Zhang et al., Class-incremental Learning via Deep Model Consolidation, WACV 2020: the
    double distillation loss on auxiliary data, whose normalisation is `normalise: mean`; the default `scaled` is DAC's,
    so that the two differ in lambda alone. [ours] the student starts from the last model as
    DAC's does (the paper's starts anew: student: initial), and so do the devices.
    """

    class Params(DAC.Params):
        consolidation: ConsolidationParameters = Field(
            default_factory=ConsolidationParameters, description="the double distillation at the centre"
        )
