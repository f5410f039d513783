"""What the documents show must work."""

import re
from pathlib import Path

import torch

from methods import base

ROOT = Path(__file__).parent.parent


def test_the_method_of_the_guide_is_fedavg_without_its_momentum(laboratory):
    guide = (ROOT / "docs" / "add-a-method.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    method, test = (next(block for block in blocks if word in block) for word in ("@register", "def test_"))
    try:
        exec(compile(method.replace("from .", "from methods."), "fedavgm.py", "exec"), {"__name__": "fedavgm"})
        told = {"torch": torch}
        exec(compile(test, "test_fedavgm.py", "exec"), told)
        told["test_without_momentum_it_is_fedavg_to_the_last_bit"](laboratory)
        moving, plain = (
            laboratory("fedavgm").play().server.part("model"),
            laboratory("fedavg").play().server.part("model"),
        )
        assert not all(torch.equal(w, plain[name]) for name, w in moving.items())
    finally:
        base._methods.pop("fedavgm", None)
