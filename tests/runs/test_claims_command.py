"""`fcl claims` and `fcl report` as a user calls them, on results that a run made."""

from __future__ import annotations

import json

import report.record


def test_claims_says_what_was_not_run_and_ends_well(fcl, workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(report.record, "RECORD", tmp_path / "recorded.json")
    status, out, errors = fcl("claims")
    assert status == 0, errors
    assert "not run" in out
    assert "large_small" in out


def test_claims_fails_where_a_recorded_verdict_is_lost_and_records_when_asked(fcl, workshop, tmp_path, monkeypatch):
    record = tmp_path / "recorded.json"
    monkeypatch.setattr(report.record, "RECORD", record)
    place = workshop / "results" / "digits-devices" / "dac" / "seed-0"
    place.mkdir(parents=True)
    try:
        (place / "metrics.json").write_text('{"transfer_area": 0.1}')
        status, _, errors = fcl("claims", "--record")
        assert status == 0, errors
        assert json.loads(record.read_text())["dac/transfer/digits"]["verdict"] == "reproduced"
        assert fcl("claims")[0] == 0
        (place / "metrics.json").write_text('{"transfer_area": -0.1}')
        status, _, errors = fcl("claims")
        assert status == 1
        assert "dac/transfer/digits: not reproduced, once reproduced" in errors
    finally:
        for path in (place / "metrics.json", place, place.parent, place.parent.parent):
            path.unlink() if path.is_file() else path.rmdir()
