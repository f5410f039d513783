"""Admission: a real round of FedAvg in which one client lies or its file suffers, and two are honest."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.fusion import fuse_all, uploads_of
from tasks.store import Ref, decode, encode
from tasks.upload import Claim, check

LIAR = 1
NAME = "model.head.bias"


@dataclass
class Round:
    """A round that waits for admission; client 1's honest claim may be replaced by a forged one."""

    lab: object
    claims: list[Claim]

    @property
    def store(self):
        return self.lab.site.store

    @property
    def honest(self) -> Claim:
        return self.claims[LIAR]

    def content(self):
        return decode(self.store.bytes(self.honest.file))

    def claim(self, data: bytes) -> Claim:
        """The liar's claim to have uploaded `data`, which is stored under its true digest."""
        return replace(self.honest, file=self.store.write("uploads", data))

    def forged(self, tensors=None, **header) -> Claim:
        content = self.content()
        return self.claim(encode({**content.tensors, **(tensors or {})}, content.header | header))

    def path(self, claim: Claim, kind: str = "uploads") -> Path:
        return Path(self.store.path, claim.file._replace(kind=kind).name)

    def judge(self, lie: Claim):
        """The liar's verdict; that nobody else is touched by the lie is checked on the way."""
        verdicts = self.lab.admit([self.claims[0], lie, self.claims[2]])
        assert [verdict.client for verdict in verdicts] == [0, LIAR, 2]
        assert verdicts[0].admitted
        assert verdicts[2].admitted
        return verdicts[LIAR]

    def refused(self, lie: Claim) -> str:
        """Why the lie is refused; that it is kept aside and the round goes on is checked on the way."""
        verdict = self.judge(lie)
        assert not verdict.admitted
        assert verdict.samples == 0
        self.check_note(lie, verdict.reason)
        self.check_fusion([self.claims[0], lie, self.claims[2]])
        return verdict.reason

    def check_note(self, lie: Claim, reason: str) -> None:
        moment = self.lab.moment
        (note,) = Path(self.store.path, "refused").glob(f"{lie.file.digest}*client-{lie.client}*.json")
        assert json.loads(note.read_text()) == {
            "client": lie.client,
            "experience": moment.experience,
            "round": moment.round,
            "reason": reason,
        }
        assert len(reason) < 400
        assert reason.isprintable()  # no line breaks, no terminal codes, nothing that UTF-8 cannot write
        note.unlink()

    def check_fusion(self, claims: list[Claim]) -> None:
        """The next server state is the mean of the honest uploads, whatever else was claimed."""
        site, before, moment = self.lab.site, self.lab.progress.server, self.lab.moment
        verdicts = self.lab.admit(claims)
        next_server = fuse_all(site, before, verdicts, moment, last_round=False)
        others = [verdict for verdict in verdicts if verdict.client != LIAR]
        assert next_server == fuse_all(site, before, others, moment, last_round=False)
        uploads = uploads_of(site, verdicts)
        assert [upload.client for upload in uploads] == [0, 2]
        total = sum(upload.samples for upload in uploads)
        for name, tensor in site.read(next_server).tensors.items():
            mean = sum(upload.message.tensors[name].double() * upload.samples for upload in uploads) / total
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def waiting(laboratory) -> Round:
    """Experience 1, round 1: there is a round and an experience before it to be stale from."""
    lab = laboratory("fedavg", sets=["run.upload_limit=1", "train.rounds=3"]).play(until=(1, 1))
    return Round(lab, lab.claims(lab.train()))


def test_honest_uploads_are_admitted_with_their_samples(waiting):
    verdicts = waiting.lab.admit(waiting.claims)
    stream = waiting.lab.site.stream
    assert [(verdict.admitted, verdict.reason) for verdict in verdicts] == [(True, "")] * 3
    assert [verdict.samples for verdict in verdicts] == [len(stream.train(client, 1)) for client in range(3)]


LIES = {
    "extra key": lambda r: (r.forged({"model.more": torch.zeros(2)}), "extra key: model.more"),
    "wrong shape": lambda r: (r.forged({NAME: torch.zeros(11)}), f"wrong shape: {NAME} is (11,), expected (10,)"),
    "wrong rank": lambda r: (r.forged({NAME: torch.zeros(10, 1)}), f"wrong shape: {NAME} is (10, 1), expected (10,)"),
    "wrong type": lambda r: (
        r.forged({NAME: torch.zeros(10).double()}),
        f"wrong type: {NAME} is torch.float64, expected torch.float32",
    ),
    "integers": lambda r: (
        r.forged({NAME: torch.zeros(10).long()}),
        f"wrong type: {NAME} is torch.int64, expected torch.float32",
    ),
    "NaN": lambda r: (r.forged({NAME: torch.full((10,), torch.nan)}), f"not finite: {NAME}"),
    "one infinity": lambda r: (r.forged({NAME: torch.tensor([-torch.inf] + [0] * 9)}), f"not finite: {NAME}"),
    "stale round": lambda r: (r.forged(round=0), "wrong round: expected 1, the header says 0"),
    "future round": lambda r: (r.forged(round=2), "wrong round: expected 1, the header says 2"),
    "stale experience": lambda r: (r.forged(experience=0), "wrong experience: expected 1, the header says 0"),
    "another client's name": lambda r: (r.forged(client=0), "wrong client: expected 1, the header says 0"),
    "wrong method": lambda r: (r.forged(method="fedlwf"), "wrong method: expected fedavg, the header says "),
    "wrong parent": lambda r: (r.forged(parent="0" * 64), "wrong parent: "),
    "no parent": lambda r: (r.forged(parent=None), "wrong parent: "),
    "no samples": lambda r: (r.forged(samples=0), "wrong samples: expected a positive whole number"),
    "negative samples": lambda r: (r.forged(samples=-5), "wrong samples: "),
    "true samples": lambda r: (r.forged(samples=True), "wrong samples: "),
    "half a sample": lambda r: (r.forged(samples=1.5), "wrong samples: "),
    "samples in words": lambda r: (r.forged(samples="12"), "wrong samples: "),
    "unsaid samples": lambda r: (r.forged(samples=None), "wrong samples: "),
    "values that are none": lambda r: (r.forged(values=[1]), "wrong values: "),
    "too large": lambda r: (r.forged({"model.more": torch.zeros(2**18 + 1)}), "too large: "),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_its_reason_and_kept_aside(waiting, lie):
    claim, reason = LIES[lie](waiting)
    data = waiting.store.bytes(claim.file)
    assert waiting.refused(claim).startswith(reason)
    assert not waiting.path(claim).exists()
    assert waiting.path(claim, "refused").read_bytes() == data


def test_a_missing_key_is_named(waiting):
    content = waiting.content()
    del content.tensors[NAME]
    assert waiting.refused(waiting.claim(encode(content.tensors, content.header))) == f"missing key: {NAME}"


@pytest.mark.parametrize("missing", ["method", "client", "experience", "round", "parent", "samples", "values"])
def test_a_header_that_says_nothing_is_refused(waiting, missing):
    content = waiting.content()
    del content.header[missing]
    assert waiting.refused(waiting.claim(encode(content.tensors, content.header))).startswith(f"wrong {missing}: ")


def test_the_size_limit_is_that_of_the_parameters(waiting):
    """One MiB is admitted as far as size goes, one byte more is not."""
    limit = 2**20
    padding = limit - len(waiting.store.bytes(waiting.forged({"model.more": torch.zeros(8)}).file)) + 32
    fits = waiting.forged({"model.more": torch.zeros(padding // 4 - 16)})
    assert limit - 512 < fits.file.size <= limit
    assert waiting.refused(fits).startswith("extra key")
    large = waiting.claim(bytes(limit + 1))
    assert waiting.refused(large) == f"too large: {limit + 1} bytes, the limit is {limit} (run.upload_limit)"


# what a method itself refuses


@pytest.fixture(scope="module")
def sparse(laboratory) -> Round:
    """A method that sends indices: the last round of experience 1, with both kinds of them."""
    lab = laboratory("fedweit").play(until=(1, 1))
    return Round(lab, lab.claims(lab.train()))


@pytest.mark.parametrize("name", ["base.places", "adaptive.places"])
@pytest.mark.parametrize("lie", ["too large", "negative", "twice", "backwards"])
def test_indices_that_are_out_of_range_or_out_of_order_are_refused(sparse, name, lie):
    places = sparse.content().tensors[name].clone()
    if lie == "too large":
        places[-1] = 2**31 - 1
    elif lie == "negative":
        places[0] = -1
    elif lie == "twice":
        places[1] = places[0]
    else:
        places = places.flip(0)
    claim = sparse.forged({name: places})
    verdict = sparse.judge(claim)
    assert not verdict.admitted
    assert verdict.reason.startswith("wrong content: places that do not ascend within 0 to ")
    sparse.check_note(claim, verdict.reason)
    others = [each for each in sparse.lab.admit(sparse.claims) if each.client != LIAR]
    with_the_lie = sparse.lab.admit([sparse.claims[0], claim, sparse.claims[2]])
    assert sparse.lab.fuse([each for each in with_the_lie if each.admitted]) == sparse.lab.fuse(others)


def test_honest_indices_are_admitted(sparse):
    assert [verdict.admitted for verdict in sparse.lab.admit(sparse.claims)] == [True] * 3


# files that suffer


def test_a_file_changed_after_the_claim_has_the_wrong_digest(waiting):
    claim = waiting.forged({NAME: torch.ones(10)})
    changed = waiting.forged({NAME: torch.full((10,), 2.0)})
    waiting.path(changed).replace(waiting.path(claim))
    assert waiting.refused(claim).startswith("wrong digest: ")


def test_a_truncated_file_has_the_wrong_digest(waiting):
    claim = waiting.forged({NAME: torch.ones(10)})
    path = waiting.path(claim)
    path.write_bytes(path.read_bytes()[:-1])
    assert waiting.refused(claim).startswith("wrong digest: ")


def test_a_missing_file_is_refused(waiting):
    claim = waiting.forged({NAME: torch.full((10,), 3.0)})
    waiting.path(claim).unlink()
    assert waiting.refused(claim) == "nothing was stored under the announced name"
    never = replace(claim, file=Ref("uploads", "0" * 64, 100))
    assert waiting.refused(never) == "nothing was stored under the announced name"


NOT_OURS = {
    "an empty file": lambda content: b"",
    "text": lambda content: b"hello, I am a model",
    "a pickle": lambda content: b"\x80\x04\x95.",
    "a truncated file": lambda content: encode(content.tensors, content.header)[:-4],
    "a file with a tail": lambda content: encode(content.tensors, content.header) + b"\0" * 4,
    "safetensors without metadata": lambda content: safetensors.torch.save(content.tensors),
    "metadata without our header": lambda content: safetensors.torch.save(content.tensors, {"format": "pt"}),
    "a header that is not JSON": lambda content: safetensors.torch.save(content.tensors, {"header": "{"}),
    "a length beyond the file": lambda content: struct.pack("<Q", 2**63) + b"{}",
    "deep nesting": lambda content: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a deeply nested header": lambda content: safetensors.torch.save(content.tensors, {"header": "[" * 200_000}),
    "a header that is a list": lambda content: safetensors.torch.save(content.tensors, {"header": "[]"}),
    "a header that is null": lambda content: safetensors.torch.save(content.tensors, {"header": "null"}),
    "a header that is a text": lambda content: safetensors.torch.save(content.tensors, {"header": '"client"'}),
    "a header that is a number": lambda content: safetensors.torch.save(content.tensors, {"header": "7"}),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_is_not_a_payload_is_refused(waiting, kind):
    claim = waiting.claim(NOT_OURS[kind](waiting.content()))
    assert waiting.refused(claim)


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda r: r.forged(method="fedavg\n" * 1000), id="long text in the header"),
        pytest.param(lambda r: r.forged(method="\x1b[2J"), id="a terminal code in the header"),
        pytest.param(lambda r: r.forged(client=list(range(10_000))), id="a long list in the header"),
        pytest.param(lambda r: r.forged(parent="\ud800"), id="half a character in the header"),
        pytest.param(lambda r: r.forged({"x\n" * 5000: torch.zeros(1)}), id="a long name"),
        pytest.param(lambda r: r.forged({f"model.more.{i}": torch.zeros(1) for i in range(999)}), id="many names"),
    ],
)
def test_a_reason_stays_one_short_line_whatever_the_file_says(waiting, lie):
    """Reasons go into rounds.parquet, logs and the terminal. `check_note` looks at them."""
    assert waiting.refused(lie(waiting))


def test_claiming_anothers_file_does_not_harm_the_other(waiting):
    """The file that client 1 claims is client 0's: 1 is refused, and 0's upload is still there to be fused."""
    lie = replace(waiting.claims[0], client=LIAR)
    for claims in ([waiting.claims[0], lie, waiting.claims[2]], [lie, waiting.claims[0], waiting.claims[2]]):
        try:
            verdicts = {verdict.client: verdict for verdict in waiting.lab.admit(claims)}
            assert verdicts[LIAR].reason.startswith("wrong client: ")
            assert verdicts[0].admitted
            waiting.check_fusion(claims)
        finally:  # as it was, for the other tests
            stolen = waiting.path(lie, "refused")
            if stolen.exists():
                stolen.replace(waiting.path(lie))


# any bytes at all


@given(st.binary(max_size=300))
def test_random_bytes_are_never_admitted_and_never_raise(waiting, data):
    (verdict,) = waiting.lab.admit([waiting.claim(data)])
    assert not verdict.admitted
    assert verdict.reason


@given(st.data())
def test_a_changed_byte_is_never_admitted(waiting, data):
    original = waiting.store.bytes(waiting.honest.file)
    place = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[place] ^= data.draw(st.integers(1, 255))
    claim = waiting.forged(values={"note": "a file of its own"})
    waiting.path(claim).write_bytes(bytes(changed))
    (verdict,) = waiting.lab.admit([claim])
    assert not verdict.admitted
    assert verdict.reason.startswith("wrong digest")


@given(st.data())
def test_changed_bytes_under_a_matching_digest_never_raise_and_never_break_the_promises(waiting, data):
    """Who lies about the digest too can only send another finite model of the right form in its own name."""
    original = waiting.store.bytes(waiting.honest.file)
    changed = bytearray(original)
    header = 8 + int.from_bytes(original[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        last = data.draw(st.sampled_from([header, len(original)])) - 1
        changed[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    claim = waiting.claim(bytes(changed))
    site, moment = waiting.lab.site, waiting.lab.moment
    if claim.file == waiting.honest.file:
        return
    (verdict,) = waiting.lab.admit([claim])
    if verdict.admitted:
        content = decode(waiting.store.bytes(claim.file))
        expected = site.method.expects(waiting.lab.server, LIAR, moment)
        assert hashlib.sha256(changed).hexdigest() == claim.file.digest
        assert check(site, claim, moment, expected) == verdict.samples > 0
        assert content.header["client"] == LIAR
        assert {name: tensor.shape for name, tensor in content.tensors.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
        assert all(torch.isfinite(tensor).all() for tensor in content.tensors.values())
