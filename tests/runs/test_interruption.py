"""A run ends when it is interrupted, also where the KeyboardInterrupt is lost on its way."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest

from flows import conduct
from tasks import interruption

TINY = {"stream": "single", "workers": 1}


@pytest.fixture(autouse=True)
def _handlers(monkeypatch):
    """As Python sets them when it is started from a terminal; a shell's background jobs ignore Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(interruption, "_received", False)  # whatever comes is forgotten after the test
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def lost_ctrl_c() -> None:
    """A Ctrl-C whose KeyboardInterrupt somebody swallows."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the KeyboardInterrupt was not raised")


def test_a_ctrl_c_that_a_callback_swallows_ends_the_run_at_its_next_checkpoint(play_run, new_out):
    interruption.listen()
    out, steps = new_out(), []

    def during(run):
        def at(done, total, what):
            steps.append(done)
            if done == 2:
                lost_ctrl_c()

        return at

    with pytest.raises(KeyboardInterrupt):
        play_run(out=out, during=during, **TINY)
    assert steps == [1, 2] and not out.exists()
    interruption.listen()
    assert play_run(out=out, resume=True, during=during, **TINY).metrics
    assert steps == [1, 2, 3, 4], "a run that is resumed goes on from that checkpoint"


def test_one_that_is_swallowed_after_the_last_checkpoint_ends_the_run_without_results(play_run, new_out, monkeypatch):
    interruption.listen()
    write, out = conduct.write_results, new_out()
    monkeypatch.setattr(conduct, "write_results", lambda run: (lost_ctrl_c(), write(run))[1])
    with pytest.raises(KeyboardInterrupt):
        play_run(out=out, **TINY)
    assert not out.exists()


def test_one_that_is_swallowed_in_any_command_is_said_in_one_line(fcl, monkeypatch):
    import methods

    names = methods.names
    monkeypatch.setattr(methods, "names", lambda: (lost_ctrl_c(), names())[1])
    status, said, error = fcl("methods")
    (line,) = error.splitlines()
    assert status == 1 and "fedavg" in said
    assert line.startswith("error: interrupted") and "--resume" in line


def test_who_was_started_to_ignore_ctrl_c_does():
    """As nearly all programs do: it is meant for what runs in the foreground."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption.listen()
    signal.raise_signal(signal.SIGINT)
    interruption.heed()
