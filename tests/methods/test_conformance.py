"""What every method must be: a method that is registered is tested here without a word from its author."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import methods
from errors import InputError
from methods import CENTRE, Message, Moment, State
from methods.experts import Experts
from methods.training import to_float
from methods.tuning import FineTuning
from tasks.fusion import uploads_of
from tasks.store import Store, decode, encode
from tasks.upload import AdmittedUpload

# One method after the other: what its tests share goes when the next one's turn has come.
pytestmark = pytest.mark.parametrize("name", methods.names(), scope="module")
ONE_A_ROUND = ("train.clients_per_round=1",)
HALF = ("model", "foundation.network")
FEW_STEPS = ("train.batch_size=32",)  # where the kind of stream matters, not how long a client trains


class Recorder(Store):
    """A store that remembers, as objects, what it was given to write."""

    def __init__(self, url: str) -> None:
        super().__init__(url, remembered=1000)
        self.written = []

    def put(self, kind, tensors, header):
        ref = super().put(kind, tensors, header)
        self.written.append((ref, tensors, header))
        return ref


@pytest.fixture(scope="module")
def watched(laboratory):
    """A finished experiment whose store remembers everything that was written to it and read from it."""

    def play(name: str, stream: str = "digits", sets=()):
        lab = laboratory(name, stream, sets=sets)
        lab.site.store = Recorder(lab.site.store.url)
        lab.progress.server = lab.site.write(lab.site.method.start())
        return lab.play()

    return play


@pytest.fixture(scope="module")
def sampled(name, watched):
    """The experiment with one client a round, watched."""
    return watched(name, sets=ONE_A_ROUND)


@dataclass
class Again:
    """An experiment that was played once more, watched, and the global generators before and after it."""

    lab: object
    generators: tuple[tuple, tuple]


def global_generators() -> tuple:
    return torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()  # noqa: NPY002


@pytest.fixture(scope="module")
def again(name, played, watched):
    """The experiment once more, from other states of the global generators."""
    played(name)
    former = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(1234)
    np.random.seed(1234)  # noqa: NPY002
    random.seed(1234)
    before = global_generators()
    lab = watched(name)
    after = global_generators()
    torch.set_rng_state(former[0])
    np.random.set_state(former[1])  # noqa: NPY002
    random.setstate(former[2])
    return Again(lab, (before, after))


# reproducible


def test_the_same_seed_gives_the_same_states_and_accuracies(name, again, played):
    """Whatever the global generators are at."""
    assert again.lab.digest == played(name).digest
    assert again.lab.rows == played(name).rows
    assert again.lab.bytes == played(name).bytes


def test_another_seed_gives_other_states(name, laboratory):
    one, other = (laboratory(name, seed=seed).play(until=(0, 1)) for seed in (0, 1))
    assert one.moment == other.moment and one.digest != other.digest


@pytest.mark.parametrize("sets", [(), ONE_A_ROUND])
def test_nothing_is_lost_when_it_is_reopened_after_every_round(name, sets, laboratory, played, sampled):
    lab, whole = laboratory(name, sets=sets), sampled if sets else played(name)
    while not lab.over:
        lab.play_round()
        lab.reopen()
    assert lab.digest == whole.digest
    assert lab.rows == [row for row in whole.rows if row["trained"] >= 0]


def test_global_randomness_is_neither_used_nor_set(name, again):
    before, after = again.generators
    assert torch.equal(before[0], after[0])
    np.testing.assert_equal(before[1:], after[1:])


def test_the_order_in_which_uploads_come_changes_nothing(name, laboratory):
    lab = laboratory(name)
    while not lab.over:
        trained = lab.train()
        claims = lab.claims(trained)
        verdicts = lab.admit(claims)
        backwards = lab.admit(claims[::-1])
        assert sorted(backwards, key=lambda verdict: verdict.client) == verdicts
        assert [upload.client for upload in uploads_of(lab.site, backwards)] == [claim.client for claim in claims]
        server = lab.fuse(verdicts)
        assert lab.fuse(backwards) == lab.fuse(verdicts[1:] + verdicts[:1]) == server
        lab.advance(trained, verdicts, server)


# explicit states and messages


def test_states_and_messages_are_what_is_read_back(name, sampled):
    written = sampled.site.store.written
    assert written
    for ref, tensors, header in written:
        data = encode(tensors, header)
        assert data == encode(dict(reversed(tensors.items())), dict(reversed(header.items())))
        content = decode(data)
        assert content.header == header == json.loads(json.dumps(header)), ref
        assert content.tensors.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert tensor.device.type == "cpu"
            assert content.tensors[key].dtype == tensor.dtype
            assert torch.equal(content.tensors[key], tensor)


def test_nothing_that_was_given_is_changed_in_place(name, again):
    store = again.lab.site.store
    given = [(ref, store.get(ref, remember=True)) for ref, _, _ in store.written if ref.kind != "uploads"]
    assert given
    for ref, content in given:  # the very objects that the method was given to read
        assert store.write(ref.kind, encode(content.tensors, content.header)) == ref


def test_uploads_are_what_the_server_expects_and_are_admitted(name, laboratory):
    lab = laboratory(name, sets=["train.clients_per_round=2"])
    while not lab.over:
        trained, server, moment = lab.train(), lab.server, lab.moment
        claims = lab.claims(trained)
        verdicts = lab.admit(claims)
        assert all(verdict.admitted for verdict in verdicts), verdicts
        for verdict in verdicts:
            message = AdmittedUpload(verdict.client, verdict.samples, lab.site.store, verdict.file).message
            expected = lab.site.method.expects(server, verdict.client, moment)
            assert {key: (tensor.shape, tensor.dtype) for key, tensor in message.tensors.items()} == {
                key: (tensor.shape, tensor.dtype) for key, tensor in expected.items()
            }
        silent = [each for each in trained if each.upload is None]
        assert not any(lab.site.method.expects(server, each.client, moment) for each in silent)
        assert {verdict.client: verdict.samples for verdict in verdicts} == {
            each.client: len(lab.site.rows(each.client, moment.experience)) for each in trained if each.upload
        }
        lab.advance(trained, verdicts, lab.fuse(verdicts))


def test_no_image_crosses(name, played):
    lab = played(name)
    crossed = [
        tensor.numpy().tobytes()
        for _, trained, _ in lab.rounds
        for each in trained
        for ref in (each.upload, each.broadcast)
        if ref
        for tensor in lab.site.store.get(ref).tensors.values()
    ]
    if methods.get(name).centralised:
        assert not crossed
        return
    rows = np.concatenate([lab.site.rows(client, 0) for client in lab.site.method.participants])
    images = torch.from_numpy(lab.site.stream.inputs[rows])
    for kind in (images, images.float(), images.float() / 255, to_float(images)):
        for image in kind:
            raw = image.numpy().tobytes()
            assert not any(raw in data for data in crossed)


# any federation


def measured(lab) -> set[tuple[int, int]]:
    return {(row["trained"], row["tested"]) for row in lab.rows if row["model"] in lab.site.method.evaluates}


@pytest.mark.parametrize("stream", ["alone", "short", "single", "own"])
def test_it_works_with_one_client_one_experience_or_own_orders(name, stream, played):
    lab = played(name, stream, sets=FEW_STEPS)
    experiences = range(lab.site.stream.experiences)
    assert lab.over
    assert measured(lab) == {(trained, tested) for trained in (-1, *experiences) for tested in experiences}
    assert all(0 <= row["accuracy"] <= 1 for row in lab.rows)
    assert all(np.isfinite(each.loss) for _, trained, _ in lab.rounds for each in trained)


@pytest.mark.parametrize("stream", ["tasks", "domains", "late", "growing", "joining"])
def test_it_works_on_every_kind_of_stream(name, stream, played):
    """Heads that are known, domains instead of classes, clients that lag behind, clients that join and leave."""
    lab = played(name, stream, sets=FEW_STEPS)
    assert lab.over
    assert all(0 <= row["accuracy"] <= 1 for row in lab.rows)
    assert {row["trained"] for row in lab.rows if row["model"] in lab.site.method.evaluates} >= {
        *range(lab.site.stream.experiences)
    }
    for moment, trained, _ in lab.rounds:
        assert [each.client for each in trained] == [
            client for client in lab.site.method.participants if lab.site.able(client, moment)
        ]
        assert all(np.isfinite(each.loss) and each.steps for each in trained)


def test_it_works_with_networks_in_half_precision(name, played):
    lab = played(name, "short", sets=(*FEW_STEPS, *(f"{part}.precision=bfloat16" for part in HALF)))
    assert lab.over
    assert lab.digest != played(name, "short", sets=FEW_STEPS).digest
    assert all(np.isfinite(each.loss) for _, trained, _ in lab.rounds for each in trained)
    kinds = {each.dtype for each in lab.site.read(lab.progress.server).tensors.values()}
    assert torch.bfloat16 not in kinds


def test_it_works_on_texts_or_says_that_it_needs_images(name, laboratory):
    try:
        lab = laboratory(name, "texts")
    except InputError as error:  # said before the first round
        assert name in str(error) and "image" in str(error)
        return
    lab.play()
    assert lab.over
    assert all(0 <= row["accuracy"] <= 1 for row in lab.rows)


def test_it_learns(name, played):
    """More than guessing: after an experience, at least half of its test samples are right among the seen classes."""
    alone = issubclass(methods.get(name), Experts)  # a device trains its expert in one go
    sets = ["train.rounds=1", "train.local_epochs=10"] if alone else ["train.rounds=5"]
    if issubclass(methods.get(name), FineTuning):
        sets = ["train.rounds=10", "train.optimizer=adamw", "train.learning_rate=0.02"]  # of weak features
    lab = played(name, "single", sets=sets)
    kind = next(iter(lab.site.method.evaluates))
    (before,), (after,) = (
        [row["accuracy"] for row in lab.rows if row["model"] == kind and row["trained"] == trained]
        for trained in (-1, 0)
    )
    assert after > max(before, 0.5)


def test_a_client_without_data_is_left_out_and_the_others_go_on(name, played):
    lab = played(name, "skewed")
    stream, participants = lab.site.stream, lab.site.method.participants
    cells = [(client, experience) for client in range(3) for experience in range(3)]
    assert any(not len(stream.train(*cell)) for cell in cells), "the stream should have empty cells"
    assert not len(stream.train(1, 0)), "a client should be empty in the first experience"
    for moment, trained, _ in lab.rounds:
        able = [client for client in participants if len(lab.site.rows(client, moment.experience))]
        assert [each.client for each in trained] == able
        assert all(each.samples and each.steps for each in trained)
    assert lab.over
    assert all(np.isfinite(row["accuracy"]) and row["samples"] for row in lab.rows)


def test_a_round_without_clients_or_uploads_leaves_the_server_able_to_go_on(name, laboratory):
    lab = laboratory(name, sets=["train.rounds=3"]).play(until=(1, 1))
    assert lab.site.method.broadcast(lab.server, (), lab.moment) == {}
    lab.advance([], [], lab.fuse([]))  # nobody has data, or nobody was admitted
    lab.play()
    assert lab.over


def test_one_client_a_round_lets_clients_come_late(name, sampled):
    lab = sampled
    assert lab.over
    assert [len(trained) for _, trained, _ in lab.rounds] == [1] * len(lab.rounds)
    if not methods.get(name).centralised:
        first = {}
        for moment, trained, _ in lab.rounds:
            first.setdefault((trained[0].client, moment.experience), moment.round)
        assert any(number > 0 for (_, experience), number in first.items() if experience > 0)


def test_a_client_whose_first_round_was_lost_comes_back_in_the_next(name, laboratory):
    """Neither the server nor the client keeps anything of a lost round, whatever the method counted on."""
    lab = laboratory(name, sets=["train.rounds=3"])
    while not lab.over:
        trained = lab.train()
        lost = trained[0].client if lab.moment.round == 0 and len(trained) > 1 else None
        kept = [each for each in trained if each.client != lost]
        verdicts = lab.admit(lab.claims(kept))
        assert all(verdict.admitted for verdict in verdicts)
        lab.advance(kept, verdicts, lab.fuse(verdicts))
    assert lab.over
    assert lab.rounds[-1][1][0].client == lab.site.method.participants[0]


# models


def test_predictors_map_images_to_logits_over_all_classes(name, played):
    lab = played(name)
    method, stream = lab.site.method, lab.site.stream
    for kind, scope in method.evaluates.items():
        holders = [CENTRE] if scope == "server" else method.participants
        for holder in holders:
            client = lab.client(holder) if scope == "client" else State()
            for batch in (1, 5):
                model = method.predictor(kind, lab.server, client, holder).eval()
                logits = model(torch.zeros(batch, *stream.shape))
                assert logits.shape == (batch, stream.classes)
                assert torch.isfinite(logits).all()


def test_kinds_of_model_are_named_once_and_have_a_holder(name):
    kinds = methods.get(name).evaluates
    assert kinds
    assert set(kinds.values()) <= {"server", "client"}
    assert not {"received", "trained"} & set(kinds), "these names are the pipeline's"


NETWORKS = [{"name": "mlp", "width": 16, "features": 12}, {"name": "mlp", "width": 24, "features": 12}]


def test_clients_have_networks_of_their_own_where_the_method_allows_it(name, played):
    sets = (f"models={json.dumps(NETWORKS)}",)
    if not methods.get(name).heterogeneous:
        with pytest.raises(InputError, match=f"models: {name} needs one network for all clients"):
            played(name, sets=sets)
        return
    lab = played(name, sets=sets)
    method = lab.site.method
    assert lab.over
    assert all(np.isfinite(row["accuracy"]) for row in lab.rows)
    kinds = [kind for kind, scope in method.evaluates.items() if scope == "client"]
    assert kinds, "every client's network is measured"
    widths = {network["width"] for network in NETWORKS}
    for client in method.participants:
        own = set()
        for kind in kinds:
            model = method.predictor(kind, lab.server, lab.site.read(lab.progress.clients.get(client)), client)
            own |= {each.out_features for each in model.modules() if type(each) is nn.Linear} & widths
            assert (kind, client) in {(row["model"], row["client"]) for row in lab.rows}
        assert own == {NETWORKS[method.setting.place(client)]["width"]}


# parameters and words


def test_params_yaml_has_every_parameter_at_its_default(name, root):
    section = yaml.safe_load((root / "params.yaml").read_text())["methods"][name]
    assert methods.get(name).Params().model_dump(mode="json") == section


def test_every_parameter_is_described(name):
    for key, field in methods.get(name).Params.model_fields.items():
        assert field.description, key


def test_the_docstring_begins_with_one_line_that_says_what_it_is(name):
    kind = methods.get(name)
    first = kind.__doc__.strip().splitlines()[0]
    assert kind.summary == first.rstrip(".")
    assert 10 <= len(first) <= 100


def test_the_docstring_has_its_formula(name):
    assert any(sign in methods.get(name).__doc__ for sign in ("<-", "=", "min"))


def test_participants_are_the_clients_or_the_centre(name, laboratory):
    method = laboratory(name).site.method
    assert method.participants == ((CENTRE,) if method.centralised else (0, 1, 2))
    assert all(a < b for a, b in pairwise(method.participants))


def test_broadcasts_are_for_the_sampled_clients_and_only_them(name, laboratory):
    lab = laboratory(name)
    some = lab.site.method.participants[:2]
    server = lab.site.method.prepare(lab.server, some, Moment(0, 0))
    messages = lab.site.method.broadcast(server, some, Moment(0, 0))
    assert tuple(messages) == some
    assert all(message is None or type(message) is Message for message in messages.values())
