"""What crosses between server and clients: broadcasts down, uploads up, and the server's admission of uploads.

A payload is a safetensors file named by its SHA-256 whose header says whose it is. The server admits an upload only if
digest, keys, shapes, types, finiteness, size, method, client, experience and round are right, it answers the broadcast
that the server sent and the method finds its content in order; what is refused is kept aside with the reason, and the
round goes on with the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from methods import Message, Moment

from .site import Site
from .store import Content, DamagedFile, Ref, Store, decode


@dataclass(frozen=True)
class Claim:
    """A client says: this file is my upload. `parent` is the digest of the broadcast that the server sent it."""

    client: int
    file: Ref
    parent: str | None


@dataclass(frozen=True)
class Verdict:
    client: int
    file: Ref
    samples: int
    admitted: bool
    reason: str = ""


@dataclass(frozen=True)
class AdmittedUpload:
    """See `methods.base.Upload`."""

    client: int
    samples: int
    store: Store
    file: Ref

    @property
    def message(self) -> Message:
        content = self.store.get(self.file)
        return Message(content.tensors, content.header["values"])


def header(site: Site, client: int, moment: Moment, samples: int, parent: str | None, values: Mapping[str, Any]):
    """The typed header of a payload."""
    return {
        "method": site.experiment.method,
        "client": client,
        "experience": moment.experience,
        "round": moment.round,
        "samples": samples,
        "parent": parent,
        "values": dict(values),
    }


class Opening(NamedTuple):
    """How a round begins."""

    server: Ref  # the server's state with what was decided for the round
    broadcasts: dict[int, Ref | None]
    tables: dict[str, list[dict[str, Any]]]  # what was decided, for the results


def open_round(site: Site, server: Ref, clients: Sequence[int], moment: Moment) -> Opening:
    """What the server decides before a round, and the messages to its clients."""
    state = site.read(server)
    prepared = site.method.prepare(state, clients, moment)
    server = server if prepared is state else site.write(prepared)
    tables = {
        name: [{"experience": moment.experience, "round": moment.round, **row} for row in rows]
        for name, rows in site.method.tables(prepared, moment).items()
    }
    return Opening(server, write_broadcasts(site, server, clients, moment), tables)


def write_broadcasts(site: Site, server: Ref, clients: Sequence[int], moment: Moment) -> dict[int, Ref | None]:
    """Writes what goes down to each client; a message shared by several is written once and counted for each."""
    messages = site.method.broadcast(site.read(server), clients, moment)
    written: dict[int, Ref] = {}
    broadcasts: dict[int, Ref | None] = dict.fromkeys(clients)
    for client in clients:
        message = messages[client]
        if message is None:
            continue
        if id(message) not in written:
            content = header(site, -1, moment, 0, server.digest, message.values)
            written[id(message)] = site.store.put("broadcasts", message.tensors, content)
        broadcasts[client] = written[id(message)]
    return broadcasts


def write_upload(site: Site, client: int, moment: Moment, message: Message, samples: int, parent: Ref | None) -> Ref:
    """The client's side of the upload."""
    content = header(site, client, moment, samples, parent.digest if parent else None, message.values)
    return site.store.put("uploads", message.tensors, content)


def admit(site: Site, server: Ref, moment: Moment, claims: Sequence[Claim]) -> list[Verdict]:
    """The server's side: checks each upload; refused files are kept in `refused/`, the reason beside them."""
    state = site.read(server)
    verdicts = []
    for claim in claims:
        try:
            expected = site.method.expects(state, claim.client, moment)
            samples = check(site, claim, moment, expected)
            verdicts.append(Verdict(claim.client, claim.file, samples, admitted=True))
        except (Refused, DamagedFile) as error:
            verdicts.append(Verdict(claim.client, claim.file, 0, admitted=False, reason=str(error)))
    honest = {verdict.file for verdict in verdicts if verdict.admitted}  # a liar may claim another client's file
    for claim, verdict in zip(claims, verdicts, strict=True):
        if not verdict.admitted:
            set_aside(site.store, claim, moment, verdict.reason, move=claim.file not in honest)
    return verdicts


def short(value: object) -> str:
    """What a client wrote, fit for a line in a log: printable, at most 80 characters."""
    text = ", ".join(map(str, value[:5])) if isinstance(value, list) else str(value)
    text = "".join(character if character.isprintable() else "?" for character in text[:200])
    return text if len(text) <= 80 else f"{text[:77]}..."


class Refused(Exception):
    """Why an upload is not admitted."""


def check(site: Site, claim: Claim, moment: Moment, expected: Mapping[str, Tensor]) -> int:
    """All checks of one upload, cheapest first; returns the number of samples it stands for.

    Raises:
        Refused, DamagedFile: the first check that fails, in words.
    """
    limit = site.experiment.run.upload_limit * 2**20
    size = _size(site.store, claim.file)
    if size > limit:
        raise Refused(f"too large: {size} bytes, the limit is {limit} (run.upload_limit)")
    data = site.store.bytes(claim.file)
    if hashlib.sha256(data).hexdigest() != claim.file.digest:
        raise Refused("wrong digest: the bytes do not have the SHA-256 that was announced")
    content = decode(data)
    promised = {
        "method": site.experiment.method,
        "client": claim.client,
        "experience": moment.experience,
        "round": moment.round,
        "parent": claim.parent,
    }
    for key, value in promised.items():
        found = content.header.get(key)
        if found != value or type(found) is not type(value):
            raise Refused(f"wrong {key}: expected {value}, the header says {short(found)}")
    samples = content.header.get("samples")
    if type(samples) is not int or not 1 <= samples < 2**31:
        raise Refused(f"wrong samples: expected a positive whole number below 2^31, the header says {short(samples)}")
    if not isinstance(content.header.get("values"), dict):
        raise Refused("wrong values: the header has no section of plain values")
    check_tensors(content, expected)
    try:
        site.method.check(Message(content.tensors, content.header["values"]))
    except ValueError as error:
        raise Refused(f"wrong content: {short(error)}") from None
    return samples


def check_tensors(content: Content, expected: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - content.tensors), sorted(content.tensors.keys() - expected)
    if missing:
        raise Refused(f"missing key: {short(missing)}")
    if extra:
        raise Refused(f"extra key: {short(extra)}")
    for name, template in expected.items():
        tensor = content.tensors[name]
        if tensor.shape != template.shape:
            raise Refused(f"wrong shape: {name} is {tuple(tensor.shape)}, expected {tuple(template.shape)}")
        if tensor.dtype != template.dtype:
            raise Refused(f"wrong type: {name} is {tensor.dtype}, expected {template.dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Refused(f"not finite: {name} holds NaN or infinity")


def set_aside(store: Store, claim: Claim, moment: Moment, reason: str, move: bool) -> None:
    """Keeps a refused file, if it is there at all, and the reason beside it."""
    if move:
        with suppress(FileNotFoundError):
            store.move(claim.file, "refused")
    note = {"client": claim.client, "experience": moment.experience, "round": moment.round, "reason": reason}
    name = f"{claim.file.digest}.client-{claim.client}.{moment.experience}-{moment.round}.json"
    store.write_as(f"refused/{name}", json.dumps(note, sort_keys=True).encode())


def _size(store: Store, file: Ref) -> int:
    try:
        return store.size(file)
    except FileNotFoundError:
        raise Refused("nothing was stored under the announced name") from None


@task(
    name="upload",
    task_run_name="admit uploads of round {moment.round} of experience {moment.experience}",
    cache_policy=NO_CACHE,
    log_prints=False,
)
def admit_uploads(workers, server: Ref, moment: Moment, claims: Sequence[Claim]) -> list[Verdict]:
    """Prefect task: the admission of a round's uploads, in the order of their clients."""
    return workers.call(admit, server, moment, sorted(claims, key=lambda claim: claim.client))
