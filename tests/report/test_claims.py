"""Verdicts are read off runs by rules that a reader can repeat."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.claims import Claim, Place, Verdict, judge, verdict
from report.comparisons import Above, Beyond, Evidence, Falls, Outcome, Sooner
from report.published import CLAIMS
from report.record import findings, lost, write


def runs(root, **values):
    """`stream__method=[one value of `m` per seed]` as finished runs."""
    for name, seeds in values.items():
        stream, method = name.split("__")
        for seed, value in enumerate(seeds):
            folder = root / "results" / stream / method / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps({"m": value, "final_average_accuracy": value}))
    return Evidence(root / "results")


outcomes = st.builds(lambda seeds, held: Outcome("", "", min(held, seeds), seeds), st.integers(0, 3), st.integers(0, 3))


@given(st.lists(outcomes, min_size=1, max_size=5))
def test_a_claim_is_reproduced_if_all_comparisons_hold_on_every_seed_and_open_if_one_was_not_run(found):
    said = verdict(found)
    assert (said is Verdict.NOT_RUN) == any(each.seeds == 0 for each in found)
    if said is not Verdict.NOT_RUN:
        assert (said is Verdict.REPRODUCED) == all(each.held == each.seeds for each in found)
        assert (said is Verdict.NOT) == all(each.held < each.seeds for each in found)


def test_a_claim_without_comparisons_cannot_be_tested():
    assert verdict([]) is Verdict.UNTESTABLE


@pytest.mark.parametrize(
    ("check", "held"),
    [
        (Above("s", "a", "b", "m"), 2),
        (Above("s", "b", "a", "m"), 0),  # equal is not above
        (Above("s", "b", "a", "m", by=-0.15), 2),
        (Above("s", "b", "a", "m", lower=True), 2),
        (Above("s", "a", "b", "m", ratio=1.25), 2),
        (Above("s", "a", "b", "m", ratio=1.4), 1),
        (Beyond("s", "a", "m", 0.55), 1),
    ],
)
def test_comparisons_count_the_seeds_on_which_they_hold(tmp_path, check, held):
    evidence = runs(tmp_path, s__a=[0.5, 0.6, 0.4], s__b=[0.4, 0.4, 0.4])
    outcome = check(evidence)
    assert (outcome.held, outcome.seeds) == (held, 3)
    assert not outcome.holds


def test_a_comparison_uses_the_seeds_that_both_have(tmp_path):
    outcome = Above("s", "a", "b", "m")(runs(tmp_path, s__a=[0.5, 0.5, 0.1], s__b=[0.4]))
    assert (outcome.held, outcome.seeds, outcome.holds) == (1, 1, True)


def test_what_was_not_run_is_said(tmp_path):
    evidence = runs(tmp_path, s__a=[0.5])
    for check in (
        Above("s", "a", "b", "m"),
        Beyond("s", "b", "m"),
        Sooner("s", "a", "b", 1.9),
        Falls(("s", "t"), "a", "m", "m"),
    ):
        outcome = check(evidence)
        assert (outcome.seeds, outcome.holds) == (0, False)
        assert "was not run" in outcome.said


def test_a_metric_falls_if_the_last_stream_has_less_than_the_first(tmp_path):
    evidence = runs(tmp_path, s__a=[0.9, 0.5], t__a=[0.95, 0.6], u__a=[0.8, 0.5])
    assert Falls(("s", "t", "u"), "a", "m", "m")(evidence).held == 1
    assert Falls(("s", "u", "t"), "a", "m", "m")(evidence).held == 0


CLAIM = Claim("p", "n", "words", (Place("digits", "", "tested", (Above("s", "a", "b", "m"),)),))


def test_a_verdict_that_is_lost_is_noticed_and_one_that_improves_is_not(tmp_path):
    record = tmp_path / "recorded.json"
    good = judge([CLAIM], {"": runs(tmp_path / "1", s__a=[0.5], s__b=[0.4])})
    bad = judge([CLAIM], {"": runs(tmp_path / "2", s__a=[0.3], s__b=[0.4])})
    unknown = judge([CLAIM], {"": Evidence(tmp_path / "nowhere")})
    record.write_text(json.dumps({good[0].key: {"verdict": good[0].verdict, "found": "", "seeds": 1, "commit": "c"}}))
    assert lost(good, record) == []
    assert [(each.key, before) for each, before in lost(bad, record)] == [(good[0].key, Verdict.REPRODUCED)]
    assert lost(unknown, record) == []  # not run is not lost
    record.write_text(json.dumps({bad[0].key: {"verdict": bad[0].verdict, "found": "", "seeds": 1, "commit": "c"}}))
    assert lost(good, record) == []


def test_what_is_recorded_stands_where_there_are_no_runs_and_says_so(tmp_path):
    record = tmp_path / "recorded.json"
    runs(tmp_path / "here", digits__large_small=[0.9], **{f"digits__{name}": [0.5] for name in ("fedlwf", "fedewc")})
    key = "dac/transfer/digits"
    (tmp_path / "here" / "results" / "digits-devices" / "dac" / "seed-0").mkdir(parents=True)
    (tmp_path / "here/results/digits-devices/dac/seed-0/metrics.json").write_text('{"transfer_area": 0.1}')
    about = {"git_commit": "abc12345678", "experiment": {}, "stream_digest": "s"}
    (tmp_path / "here/results/digits-devices/dac/seed-0/run.json").write_text(json.dumps(about))
    measured = {each.key: each for each in findings(tmp_path / "here", record)}[key]
    assert (measured.verdict, measured.measured) == (Verdict.REPRODUCED, True)
    write([measured], record)
    again = {each.key: each for each in findings(tmp_path / "elsewhere", record)}[key]
    assert (again.verdict, again.measured, again.found) == (Verdict.REPRODUCED, False, measured.found)
    assert "abc1234" in again.why
    assert {each.verdict for each in findings(tmp_path / "elsewhere", record)} == {
        Verdict.REPRODUCED,
        Verdict.NOT_RUN,
        Verdict.UNTESTABLE,
    }


def test_every_published_claim_is_tested_on_digits_and_on_cifar_100():
    keys = [(claim.paper, claim.name, place.name) for claim in CLAIMS for place in claim.places]
    assert len(keys) == len(set(keys))
    assert {claim.paper for claim in CLAIMS} == {"large_small", "fedbe", "tap", "dac"}
    for claim in CLAIMS:
        names = {place.name for place in claim.places if place.checks}
        assert {"digits", "CIFAR-100, reduced", "CIFAR-100"} <= names, claim


def test_every_comparison_is_of_runs_that_a_pipeline_makes():
    """dvc.yaml and paper/dvc.yaml: a claim about a run that nothing makes would stay open for ever."""
    from dvc.repo import Repo

    repo = Repo(".")
    made = {"": set(), "paper": set()}
    for stage in repo.index.stages:
        for out in stage.outs:
            parts = out.fs_path.split("/")
            if "results" in parts:
                start = parts.index("results")
                folder = "paper" if parts[start - 1] == "paper" else ""
                made[folder].add(tuple(parts[start + 1 : start + 3]))
    made["paper"] |= {(stream.removesuffix("-reduced"), name) for stream, name in made["paper"]}
    for claim in CLAIMS:
        for place in claim.places:
            for check in place.checks:
                streams = check.streams if isinstance(check, Falls) else (check.stream,)
                names = {check.method, getattr(check, "other", check.method)}
                wanted = {(stream, name) for stream in streams for name in names}
                assert wanted <= made[place.folder], (claim.name, place.name, wanted - made[place.folder])
