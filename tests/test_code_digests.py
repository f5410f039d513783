"""A method's experiments are run again when, and only when, code changes on which they depend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import methods
from flows.code_digests import closure, code_of, digest, imported, main
from tasks.run import PROJECT


def names(files):
    return {path.relative_to(PROJECT).as_posix() for path in files}


CODE = '''"""Module."""

import os  # a comment


def f(x):
    """Says {0}."""
    # {1}
    return "# no comment", x, """no docstring"""


class A:
    """Of {1}."""

    value = {2}
'''


def written(tmp_path, text):
    path = tmp_path / f"m{len(list(tmp_path.iterdir()))}.py"
    path.write_text(text)
    return digest(path)


def test_comments_docstrings_and_empty_lines_do_not_count_and_all_else_does(tmp_path):
    base = written(tmp_path, CODE.format("this", "that", 1))
    assert written(tmp_path, CODE.format("ünïcödé 'quotes'", "another # one", 1)) == base
    assert written(tmp_path, CODE.format("this", "that", 1).replace("\n\n", "\n\n\n")) == base
    assert written(tmp_path, CODE.format("this", "that", 2)) != base
    assert written(tmp_path, CODE.format("this", "that", 1).replace("# no comment", "# other")) != base
    assert written(tmp_path, CODE.format("this", "that", 1).replace("no docstring", "other")) != base


@given(st.text(alphabet="aé#'\\ \t", max_size=8))
def test_what_stands_after_a_comment_sign_does_not_count(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("code")
    assert written(folder, f"x = 'ö'  #{text}\ny = 1\n") == written(folder, "x = 'ö'\ny = 1\n")


def test_a_method_depends_on_what_it_inherits_from_and_not_on_other_methods():
    mine = names(code_of("fedprox"))
    assert {"methods/fedprox.py", "methods/fedavg.py", "methods/base.py", "tasks/fusion.py", "models/cnn.py"} <= mine
    assert not {"methods/fedbe.py", "methods/scaffold.py", "methods/dac.py"} & mine


@pytest.mark.parametrize("method", methods.names())
def test_all_that_a_method_imports_is_followed(method):
    """What Python has loaded of the method's own classes lies in files that are counted."""
    mine = names(code_of(method))
    kinds = [kind for kind in methods.get(method).__mro__ if kind.__module__.startswith("methods.")]
    assert {kind.__module__.replace(".", "/") + ".py" for kind in kinds} <= mine


def test_pages_figures_and_servers_are_no_part_of_a_result():
    mine = names(code_of("fedavg"))
    assert not {"metrics/plots.py", "flows/server.py", "tasks/tracking.py", "report/page.py", "cli.py"} & mine


def test_imports_inside_functions_and_of_packages_are_seen():
    found = names(imported(PROJECT / "cli.py"))
    assert {"flows/conduct.py", "flows/seeds.py", "parameters.py", "tasks/__init__.py"} <= found
    assert closure([]) == set()


def test_a_file_for_every_method_is_written_and_written_again_alike(tmp_path):
    main(tmp_path)
    first = {path.name: path.read_text() for path in (tmp_path / "built" / "code").iterdir()}
    assert set(first) == {f"{name}.txt" for name in [*methods.names(), "foundation", "stream"]}
    assert all("requirements.lock" in text for text in first.values())
    main(tmp_path)
    assert {path.name: path.read_text() for path in (tmp_path / "built" / "code").iterdir()} == first
