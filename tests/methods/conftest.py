"""What tests of single methods share."""

from __future__ import annotations

import pytest


@pytest.fixture
def client_of():
    """A client as a method sees it at the next moment of a laboratory: `client_of(lab, 0)`."""
    from methods.training import Client

    def open_one(lab, number: int) -> Client:
        site, own = lab.site, lab.site.own(number, lab.moment)
        message = site.method.broadcast(lab.server, range(site.stream.clients), lab.moment)[number]
        kept = lab.progress.clients.get(number)
        return Client(
            id=number,
            moment=own,
            seed=site.experiment.seed,
            data=site.data(number, own.experience),
            classes=site.classes(number, own.experience),
            earlier=site.earlier(number, own.experience),
            task_aware=site.stream.task_aware,
            state=site.read(kept) if kept else site.method.start_client(number),
            received=message,
        )

    return open_one
