"""A fusion that diverged is not kept."""

from __future__ import annotations

import pytest
import torch

from methods import State
from tasks.upload import Verdict


def test_a_server_state_that_is_not_finite_is_refused_with_its_name(laboratory):
    lab = laboratory("fedavg")
    trained = lab.train()
    store = lab.site.store
    claims = []
    for claim in lab.claims(trained):  # finite weights, whose weighted sum is finite in float64 but not in float32
        content = store.get(claim.file)
        huge = {name: torch.full_like(tensor, 3e38) for name, tensor in content.tensors.items()}
        claims.append(Verdict(claim.client, store.put("uploads", huge, content.header), 1, admitted=True))
    method, fuse = lab.site.method, lab.site.method.fuse
    method.fuse = lambda *arguments: State({name: 2 * each for name, each in fuse(*arguments).tensors.items()})
    with pytest.raises(RuntimeError, match=r"experience 0, round 0: after the fusion model\.\S+ holds NaN or infinity"):
        lab.fuse(claims)
