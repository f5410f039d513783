"""The temporary server's application asks again where the database was locked."""

import asyncio

import pytest

from flows import application


class Locked:
    """An ASGI application that answers 503 so many times, then 200 with what it was sent."""

    def __init__(self, times):
        self.times, self.asked = times, 0

    async def __call__(self, scope, receive, send):
        self.asked += 1
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body")
        locked = self.asked <= self.times
        await send({"type": "http.response.start", "status": 503 if locked else 200})
        await send({"type": "http.response.body", "body": b"locked" if locked else body})
        if locked:
            raise OSError("database is locked")  # as Starlette does, for the server's log


def ask(app, scope="http"):
    waiting = [
        {"type": "http.request", "body": b"one, ", "more_body": True},
        {"type": "http.request", "body": b"two"},
    ]
    said = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        said.append(message)

    asyncio.run(application.patient(app)({"type": scope}, receive, send))
    return said


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_request_is_repeated_whole_until_the_database_is_free(times):
    app = Locked(times)
    start, body = ask(app)
    assert (start["status"], body["body"]) == (200, b"one, two")
    assert app.asked == times + 1


def test_a_database_that_stays_locked_is_said(monkeypatch):
    monkeypatch.setattr(application, "LIMIT", 0)
    app = Locked(10**6)
    with pytest.raises(OSError, match="locked"):
        ask(app)
    assert app.asked == 1


def test_other_errors_are_not_repeated():
    async def broken(scope, receive, send):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ask(broken)


def test_what_is_no_request_passes():
    app = Locked(1)
    with pytest.raises(OSError, match="locked"):
        ask(app, "websocket")
    assert app.asked == 1
