"""The temporary server's application: Prefect's, where a request that finds the database locked is tried again.

SQLite has one writer. Prefect answers the request that comes second with 503, and its client comes back after 2, 4, 8
and more seconds: measured, 3 to 9 s of idle waiting each time three runs begin together. Here it waits its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LIMIT = 20  # seconds of trying, of the 60 that Prefect's client waits; the answer is 503 then, and the client goes on
PAUSE = 0.05  # seconds before the second try, twice as long before each further one, at most 1
UNAVAILABLE = 503


def create() -> Application:
    """A factory for uvicorn."""
    from prefect.server.api.server import create_app

    return patient(create_app())


def patient(application: Application) -> Application:
    """An ASGI application that asks `application` again while it answers 503 and nothing else has been sent."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        asked, deadline, pause = [await receive()], time.monotonic() + LIMIT, PAUSE
        while asked[-1].get("more_body"):
            asked.append(await receive())
        while await refused(application, scope, asked, receive, send, last=time.monotonic() > deadline):
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1)

    return answer


async def refused(
    application: Application, scope: Message, asked: list[Message], receive: Receive, send: Send, last: bool
) -> bool:
    """Asks once; whether the answer is 503, which is then sent only where this is the `last` time."""
    messages, unavailable = iter(asked), False

    async def repeat() -> Message:
        found = next(messages, None)
        return found if found is not None else await receive()

    async def pass_on(message: Message) -> None:
        nonlocal unavailable
        unavailable = unavailable or message.get("status") == UNAVAILABLE
        if last or not unavailable:
            await send(message)

    try:
        await application(dict(scope), repeat, pass_on)
    except Exception:
        if last or not unavailable:  # otherwise it is the reason for the 503, raised for the server's log
            raise
    return unavailable and not last
