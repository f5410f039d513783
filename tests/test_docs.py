"""What the documents show must work."""

import re
from pathlib import Path

from methods import base

ROOT = Path(__file__).parent.parent


def test_the_method_of_the_guide_is_fedavg_without_its_pull(laboratory):
    guide = (ROOT / "docs" / "add-a-method.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "@register" in block)
    code = code.replace("from .", "from methods.")
    try:
        exec(compile(code, "fedprox.py", "exec"), {"__name__": "fedprox"})
        assert laboratory("fedprox", sets=["methods.fedprox.mu=0"]).play().digest == laboratory("fedavg").play().digest
        assert laboratory("fedprox", sets=["methods.fedprox.mu=1"]).play().digest != laboratory("fedavg").play().digest
    finally:
        base._methods.pop("fedprox", None)
