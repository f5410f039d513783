"""Full fine-tuning held by federated curvature."""

from __future__ import annotations

from .base import register
from .fedcurv import FedCurv
from .tuning import FineTuning


@register("full_fedcurv")
class FullFedCurv(FineTuning, FedCurv):
    """FedCurv that trains the whole foundation model.

    L_i = CE(theta) + lambda sum_{j != i} (theta - theta_j)^T I_j (theta - theta_j), see `fedcurv`. Shoham et al., 2019
    """

    part = "everything"
