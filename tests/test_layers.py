"""Imports run one way, algorithms know no orchestrator, and files stay small enough for one head."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("methods", "models", "streams", "metrics", "report", "tasks", "flows")
MODULES = ("cli", "errors", "multitask", "parameters", "randomness")
# What a package may import of the project, besides itself.
ALLOWED = {
    "models": {"errors", "multitask", "randomness"},
    "streams": {"errors", "multitask", "randomness"},
    "metrics": {"errors"},
    "report": {"errors", "metrics"},
    "methods": {"errors", "multitask", "randomness", "models"},
    "tasks": {"errors", "multitask", "randomness", "models", "methods", "streams", "metrics", "parameters"},
    "errors": set(),
    "multitask": set(),
    "randomness": set(),
    "parameters": {"errors", "models", "methods", "streams"},
}
ORCHESTRATION = {"prefect", "mlflow", "dvc"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def everything() -> list[Path]:
    return sources(*PACKAGES) + [ROOT / f"{module}.py" for module in MODULES]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_project_is_where_it_is_looked_for():
    for package in PACKAGES:
        assert sources(package), package


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package):
    files = sources(package) if package in PACKAGES else [ROOT / f"{package}.py"]
    forbidden = {*PACKAGES, *MODULES} - ALLOWED[package] - {package}
    assert {relative(path): wrong for path in files if (wrong := imported(path) & forbidden)} == {}


def test_what_computes_or_reports_imports_no_orchestrator():
    files = sources("methods", "models", "streams", "metrics", "report")
    assert {relative(path): wrong for path in files if (wrong := imported(path) & ORCHESTRATION)} == {}


def test_importing_them_all_loads_no_orchestrator_and_no_pipeline():
    """Nor does what they import; so they run on a bare machine."""
    modules = [
        relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in sources("methods", "models", "streams", "metrics", "report")
    ]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {ORCHESTRATION | {"tasks", "flows", "cli"}!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_nothing_is_pickled():
    """safetensors, JSON and Parquet only: what comes from elsewhere is read, never executed.

    PyTorch's own files are read with `weights_only=True`, which refuses everything but tensors and plain values.
    """
    found = {}
    for path in everything():
        wrong, harmless = imported(path) & PICKLES, set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node).endswith("weights_only=True)"):
                harmless.add(node.func)
            elif node not in harmless and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                wrong |= {name} & {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
            elif isinstance(node, ast.ImportFrom) and node.module == "torch":
                wrong |= {f"torch.{alias.name}" for alias in node.names} & {"torch.load", "torch.save"}
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                wrong |= {"allow_pickle"}
            elif isinstance(node, ast.Attribute) and node.attr == "to_pickle":
                wrong |= {"to_pickle"}
        if wrong:
            found[relative(path)] = wrong
    assert found == {}


def test_nothing_draws_from_a_global_generator():
    """Threads share it. `torch.manual_seed` and its like would hide that something does."""
    shared = {"torch.manual_seed", "torch.seed", "random.random", "random.seed", "random.shuffle", "random.choice"}
    found = {}
    for path in everything():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            text = ast.unparse(node)
            legacy = text.startswith("np.random.") and text not in ("np.random.Generator", "np.random.default_rng")
            if text in shared or legacy:
                found.setdefault(relative(path), set()).add(text)
    assert found == {}


def test_a_method_is_at_most_200_lines():
    limits = {"base.py": 250, "training.py": 250}
    lengths = {relative(path): len(path.read_text().splitlines()) for path in sources("methods")}
    assert {name: n for name, n in lengths.items() if n > limits.get(Path(name).name, 200)} == {}


def test_no_file_is_longer_than_one_head_holds():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in everything()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_nothing_is_called_utils():
    names = ("utils", "helpers", "misc", "common")
    assert [relative(path) for path in everything() if path.stem in names] == []


def test_every_module_says_what_it_is():
    written = {path: path.read_text() for path in everything()}
    assert [relative(path) for path, text in written.items() if text and not ast.get_docstring(ast.parse(text))] == []
