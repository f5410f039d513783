"""TAP, point by point as its specification says that it is right, and what its baselines are to it."""

from __future__ import annotations

import pytest
import torch

import methods
from errors import InputError
from methods import Moment
from methods.state import State
from models.components import of, table, used_by

KNOW = [name for name in methods.names() if methods.get(name).multitask]
SEVERAL = ("several", "later")


def personal(lab, client: int, part: str = "stage1") -> dict[str, torch.Tensor]:
    return lab.client(client).part(part)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def tap(played):
    return lambda *sets, stream="several": played("tap", stream, sets=[f"methods.tap.{each}" for each in sets])


# stage 1


@pytest.mark.parametrize("stream", ["several", "digits"])
def test_with_an_infinite_margin_nothing_is_replaced_and_the_personal_model_is_the_local_one(stream, tap, played):
    never, local = tap("margin=never", stream=stream), played("local", stream)
    assert not any(row["replaced"] for row in never.tables["replacements"])
    for client in range(3):
        assert same(personal(never, client), local.client(client).part("model"))


@pytest.mark.parametrize("stream", SEVERAL)
def test_with_a_margin_of_minus_infinity_it_is_replaced_at_every_participation(stream, tap):
    assert all(row["replaced"] for row in tap("margin=always", stream=stream).tables["replacements"])


@pytest.mark.parametrize("margin", [0.01, 1000.0])
def test_with_a_finite_margin_it_is_replaced_for_certain_at_the_first_participation(margin, tap):
    rows = tap(f"margin={margin}", stream="later").tables["replacements"]
    first = {}
    for row in rows:
        first.setdefault((row["client"], row["task"]), row)
    assert len(first) == 6
    assert all(row["replaced"] and row["personal"] is None for row in first.values())
    if margin == 1000:
        assert all(row["replaced"] == (row["personal"] is None) for row in rows)


def test_it_is_replaced_if_and_only_if_the_federations_loss_is_lower_by_the_margin(tap):
    lab = tap("margin=0.0001")
    easy = {"redraw", "value"}  # half of the margin
    for row in lab.tables["replacements"]:
        margin = 0.0001 / 2 if row["task"] in easy else 0.0001
        assert row["replaced"] == (row["personal"] is None or row["federated"] + margin < row["personal"])


def test_losses_that_are_compared_are_means_of_share_times_loss(laboratory, client_of):
    from methods.objectives import losses

    lab = laboratory("tap", "several", sets=["train.batch_size=1000"])  # one minibatch: before its step
    client = client_of(lab, 0)
    update = lab.site.method.train(client)
    model = lab.site.method.begin(client)
    (batch,) = client.data.batches(1000)
    for row in update.tables["replacements"]:
        share, value = losses(model, batch, client.candidates)[row["task"]]
        assert row["federated"] == pytest.approx(share * value.item(), rel=1e-5)
        assert share == pytest.approx(0.5, abs=0.2)


def test_what_a_task_does_not_use_is_the_same_to_the_last_bit_after_a_replacement_for_it(laboratory):
    method = laboratory("tap", "several").site.method
    setting = method.setting
    own = setting.initial_model(setting.place(0))
    model, theirs = setting.load(own, 0), {name: each + 1 for name, each in own.items()}
    for task in model.known.values():
        after = method.replaced(own, theirs, task)
        used = set(of(own, used_by(task)))
        assert used
        assert used < set(own)
        for name in own:
            assert torch.equal(after[name], theirs[name] if name in used else own[name])


@pytest.mark.parametrize("stream", ["several", "later", "digits"])
def test_the_server_learns_what_fedavg_learns(stream, tap, played):
    assert same(tap(stream=stream).server.part("model"), played("fedavg", stream).server.part("model"))


def test_personal_models_never_leave_their_clients(tap):
    lab = tap()
    for _, trained, _ in lab.rounds:
        for each in trained:
            sent = lab.site.store.get(each.upload)
            own = {tensor.numpy().tobytes() for name, tensor in personal(lab, each.client).items() if tensor.dim() > 1}
            assert not any(tensor.numpy().tobytes() in own for tensor in sent.tensors.values())
            assert not sent.header["values"]


# components


def test_a_client_receives_and_sends_the_components_of_its_tasks(tap):
    lab = tap()
    method, stream = lab.site.method, lab.site.stream
    whole = lab.server.part("model")
    for client in range(3):
        own = set(of(whole, table(stream.layout, stream.tasks_of(client))))
        message = method.broadcast(lab.server, [client], Moment(0, 0))[client]
        assert set(message.part("model")) == own
        assert {name.removeprefix("model.") for name in method.expects(lab.server, client, Moment(0, 0))} == own


def test_a_component_is_the_weighted_mean_over_its_holders_only(laboratory):
    lab = laboratory("fedavg", "several")
    trained = lab.train()
    verdicts = lab.admit(lab.claims(trained))
    before, after = lab.server.part("model"), lab.site.read(lab.fuse(verdicts)).part("model")
    sent = {each.client: State(lab.site.store.get(each.upload).tensors).part("model") for each in trained}
    sizes = {each.client: each.samples for each in trained}
    holders = {"head.digit.outer.weight": [0, 2], "head.value.outer.weight": [1], "projection.0.weight": [0, 1, 2]}
    holders |= {"experts.pair.image.answer.inner.weight": [2], "encoders.image.patches.weight": [0, 2]}
    for name, clients in holders.items():
        total = sum(sizes[client] for client in clients)
        mean = sum(sizes[client] / total * sent[client][name].double() for client in clients)
        torch.testing.assert_close(after[name].double(), mean, atol=1e-6, rtol=1e-5)
        assert all((name in sent[client]) == (client in clients) for client in range(3))
        assert not torch.equal(before[name], after[name])


def test_what_nobody_of_a_round_holds_stays(laboratory):
    lab = laboratory("fedavg", "several", sets=["train.clients_per_round=1"])
    (trained,) = lab.train()
    verdicts = lab.admit(lab.claims([trained]))
    before, after = lab.server.part("model"), lab.site.read(lab.fuse(verdicts)).part("model")
    held = State(lab.site.store.get(trained.upload).tensors).part("model")
    assert held.keys() < before.keys()
    for name in before.keys() - held.keys():
        assert torch.equal(before[name], after[name])


# stage 2


def test_without_the_teacher_stage_2_is_plain_fine_tuning(laboratory, client_of):
    from dataclasses import replace

    from methods.objectives import plain
    from methods.training import fit

    lab = laboratory("tap", "several", sets=["methods.tap.distillation.weight=0"]).play(until=(0, 1))
    method = lab.site.method
    for client in range(3):
        seen = client_of(lab, client)
        model = method.setting.load(seen.state.part("model"), client)
        plain_loss = lambda model, batch, seen=seen: plain(model, batch, seen.candidates)  # noqa: E731
        rate = method.params.tuning_rate * method.setting.train.learning_rate
        train = method.setting.train.model_copy(update={"local_epochs": 3, "learning_rate": rate})
        fit(model, replace(seen, draws="distillation"), train, plain_loss)
        finished = method.finish(seen).state
        assert same(finished.part("model"), method.setting.state(model, client))
        assert same(finished.part("stage1"), seen.state.part("model"))


def test_with_everything_replaced_at_last_and_no_distillation_it_is_the_teacher_fedavg_and_fine_tuning(tap, played):
    always = tap("margin=always", "last_replacement=true", "distillation.epochs=0")
    for client in range(3):
        assert same(personal(always, client, "model"), played("fedavg_ft", "several").client(client).part("model"))


def test_the_last_replacement_is_the_comparison_of_stage_1(laboratory, client_of):
    sets = ["methods.tap.last_replacement=true", "methods.tap.distillation.epochs=0"]
    lab = laboratory("tap", "several", sets=sets).play(until=(0, 1))
    method, taken, left = lab.site.method, 0, 0
    for client in range(3):
        seen = client_of(lab, client)
        finished, before = method.finish(seen).state.part("model"), seen.state.part("model")
        teacher = method.begin(seen)
        _, losses = method.learn(teacher, seen, method.last_train(method.params.tuning_epochs))
        better = [task for task, loss in losses.items() if loss < seen.state.values["losses"][task]]
        used = {name for task in better for name in of(before, used_by(teacher.known[task]))}
        theirs = method.setting.state(teacher, client)
        for name in before:
            assert torch.equal(finished[name], theirs[name] if name in used else before[name])
        taken, left = taken + len(used), left + len(before.keys() - used)
    assert taken
    assert left


def test_a_heavy_teacher_draws_the_personal_model_to_its_answers(laboratory, client_of):
    from methods.objectives import matched

    distances = []
    for weight in (0, 5.0):
        sets = [
            f"methods.tap.distillation.weight={weight}",
            "methods.tap.distillation.epochs=5",
            "methods.tap.margin=never",
        ]
        lab = laboratory("tap", "several", sets=[*sets, "methods.tap.distillation.text_classes=1"]).play(until=(0, 1))
        client, method = client_of(lab, 1), lab.site.method
        teacher, *_ = method.tuned(client)
        student = method.setting.load(method.finish(client).state.part("model"), 1)
        (batch,) = client.data.batches(1000)
        with torch.no_grad():
            found = matched(student.eval(), teacher.eval(), batch, client.candidates)
        distances.append({task: loss.value.item() for task, loss in found.items()})
    assert distances[0].keys() == {"value", "phrase"}
    assert all(distances[1][task] < 0.8 * distances[0][task] for task in distances[0])


def test_a_client_that_never_took_part_has_the_server_model_before_stage_2(played):
    lab = played("tap", "several", sets=["train.clients_per_round=1", "train.rounds=1"])
    ((_, (trained,), _),) = lab.rounds
    for client in {0, 1, 2} - {trained.client}:
        setting = lab.site.method.setting
        assert same(personal(lab, client), setting.part(lab.server.part("model"), setting.place(client)))


# as released


def test_as_released_no_part_of_the_fusion_reaches_a_client(laboratory, client_of):
    lab = laboratory("tap", "several", sets=["methods.tap.as_released=true"]).play(until=(0, 1))
    method, client = lab.site.method, client_of(lab, 0)
    start = method.setting.initial_model(method.setting.place(0))
    begun = method.setting.state(method.begin(client), 0)
    for name, tensor in begun.items():
        fusion = name.split(".")[0] in ("projection", "transformer", "experts")
        assert torch.equal(tensor, start[name] if fusion else client.received.part("model")[name]), name


def test_as_released_experts_of_classification_are_never_replaced(laboratory):
    method = laboratory("tap", "several", sets=["methods.tap.as_released=true"]).site.method
    own = method.setting.initial_model(method.setting.place(0))
    theirs = {name: each + 1 for name, each in own.items()}
    known = method.setting.load(own, 0).known
    digit, redraw = (method.replaced(own, theirs, known[name]) for name in ("digit", "redraw"))
    for name in own:
        if ".digit." in name and name.startswith("experts."):
            assert torch.equal(digit[name], own[name])
        if ".redraw." in name:
            assert torch.equal(redraw[name], theirs[name])


# every method that knows tasks


@pytest.mark.parametrize("stream", SEVERAL)
@pytest.mark.parametrize("name", KNOW)
def test_every_task_is_measured_at_the_clients_that_hold_it(name, stream, played):
    lab = played(name, stream)
    stream, kind = lab.site.stream, next(iter(lab.site.method.evaluates))
    last = stream.experiences - 1
    held = {(row["client"], row["task"]) for row in lab.measures if row["model"] == kind and row["trained"] == last}
    assert held - {(-1, task) for task in ("digit", "redraw", "value", "answer", "phrase")} == {
        (client, task) for client in range(3) for task in stream.tasks_of(client)
    }
    measures = {"digit": {"accuracy"}, "value": {"accuracy"}, "redraw": {"mse"}}
    text = {"token_accuracy", "meteor"}
    for row in lab.measures:
        assert row["measure"] in measures.get(row["task"], text)
        assert row["value"] >= 0
        assert row["measure"] == "mse" or row["value"] <= 1


@pytest.mark.parametrize("name", KNOW)
def test_states_are_the_same_again_and_reopened_after_every_round(name, laboratory, played):
    lab = laboratory(name, "later", sets=["train.rounds=1"])
    while not lab.over:
        lab.play_round()
        lab.reopen()
    assert lab.digest == played(name, "later", sets=["train.rounds=1"]).digest


@pytest.mark.parametrize("name", ["fedewc", "large_small", "dac", "fedbe"])
def test_a_method_that_does_not_know_tasks_is_refused(name, laboratory):
    with pytest.raises(InputError, match=f"clients of stream several have different tasks, which {name} does not know"):
        laboratory(name, "several")


def test_another_network_is_refused(laboratory):
    with pytest.raises(InputError, match="text_transformer reads texts, but the inputs of stream several are records"):
        laboratory("fedavg", "several", sets=["model.name=text_transformer"])


# baselines


@pytest.mark.parametrize("stream", ["digits", "several"])
def test_perfedavg_without_the_personal_step_is_fedavg(stream, played):
    one = played("perfedavg", stream, sets=["methods.perfedavg.alpha=0"])
    assert same(one.server.part("model"), played("fedavg", stream).server.part("model"))


def test_perfedavg_steps_by_the_gradient_at_the_adapted_model(laboratory, client_of):
    """On one minibatch of SGD: w - beta grad f( w - alpha grad f(w) ), by autograd on a copy."""
    sets = ["train.batch_size=10000", "methods.perfedavg.alpha=0.3"]
    lab = laboratory("perfedavg", "single", sets=sets)
    method, client = lab.site.method, client_of(lab, 0)
    update = method.train(client)
    model, loss = method.begin(client), method.objective(client)
    (batch,) = client.batches(method.setting.train)
    start = {name: each.detach().clone() for name, each in model.named_parameters()}
    loss(model, batch).backward()
    with torch.no_grad():
        for each in model.parameters():
            each -= 0.3 * each.grad
            each.grad = None
    loss(model, batch).backward()
    for name, each in model.named_parameters():
        expected = start[name] - method.setting.train.learning_rate * each.grad
        torch.testing.assert_close(update.message.part("model")[name], expected)


def test_fedpers_heads_never_cross(played):
    lab = played("fedper", "several")
    for _, trained, _ in lab.rounds:
        for each in trained:
            for ref in (each.upload, each.broadcast):
                assert not any(".head." in name for name in lab.site.store.get(ref).tensors)
    for client in range(3):
        assert all(name.startswith("model.head.") for name in lab.client(client).tensors)


def test_pfedmes_personal_model_is_pulled_to_the_global_one(played):
    spread = []
    for pull in (0.01, 15):
        lab = played("pfedme", "digits", sets=[f"methods.pfedme.pull={pull}", "methods.pfedme.rate=0.001"])
        server = lab.server.part("model")
        spread.append(sum((each - server[name]).norm() for name, each in personal(lab, 0, "model").items()))
    assert spread[1] < spread[0] / 2


def test_disentafl_without_orthogonality_is_fedavg_and_its_fine_tuning_a_switch(played):
    base = ["methods.disentafl.orthogonality=0"]
    plain = played("disentafl", "several", sets=[*base, "methods.disentafl.post_training=false"])
    assert plain.digest == played("fedavg", "several").digest
    assert played("disentafl", "several", sets=base).digest == played("fedavg_ft", "several").digest


def test_disentafl_makes_latents_of_different_pairs_orthogonal(laboratory, client_of):
    from methods.objectives import losses

    overlaps = []
    for weight in (0, 5):
        sets = [f"methods.disentafl.orthogonality={weight}", "train.local_epochs=5"]
        lab = laboratory("disentafl", "several", sets=sets)
        client = client_of(lab, 0)
        model = lab.site.method.train(client).model.eval()
        (batch,) = client.data.batches(1000)
        seen = {}
        with torch.no_grad():
            losses(model, batch, client.candidates, seen)
        one, other = (each.mean(dim=0) for fused in seen.values() for each in fused.latents.values())
        overlaps.append(float(torch.cosine_similarity(one, other, dim=0) ** 2))
    assert overlaps[1] < overlaps[0] / 2
