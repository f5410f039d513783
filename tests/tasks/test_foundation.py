"""Foundation models: what they are made of, what they learn, and that their files are whole, current or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from errors import InputError
from methods.pretraining import all_features, pretrain, with_heads
from methods.training import LocalData
from models import backbones
from models.foundation import FoundationParameters
from parameters import foundation_parameters, read, stream_parameters
from randomness import generator
from streams.stream import Stream, build, open_stream
from tasks import foundation
from tasks.site import prepare_process

BUILD = """
import sys
from pathlib import Path
from parameters import foundation_parameters, read
from streams.stream import open_stream
from tasks.foundation import build
root, sets = Path.cwd(), sys.argv[2:]
parameters = foundation_parameters(read(root, sets), "digits", sets)
built = build(sys.argv[1], parameters, open_stream("digits", root), root)
print(built.new, built.record["digest"])
"""
CNN = ("foundation.network.name=cnn", "foundation.network.width=16")


def make(root: Path, *sets: str, stream: str = "digits", name: str = "it") -> foundation.Built:
    parameters = foundation_parameters(read(root, sets), stream, sets)
    return foundation.build(name, parameters, open_stream(stream, root), root)


def elsewhere(root: Path, name: str, *sets: str) -> subprocess.Popen:
    """`make` in a process of its own, which says whether it made the model, and the digest."""
    repository = str(Path(foundation.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {repository!r})\n{BUILD}", name, *sets],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    )


def everyone(stream: Stream) -> LocalData:
    return LocalData(*stream.load(foundation.test_rows(stream)))


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def shared(small_project, tmp_path_factory):
    """A project in which models of different names are made."""
    return Path(shutil.copytree(small_project, tmp_path_factory.mktemp("shared") / "project"))


@pytest.fixture(scope="module")
def whole(shared):
    return make(shared, name="whole")


# what determines it


def test_the_same_in_another_process_and_another_seed_is_another(shared, whole):
    process = elsewhere(shared, "other", f"foundation.seed={whole.record['parameters']['seed']}")
    assert process.communicate()[0].split() == ["True", whole.record["digest"]]
    assert make(shared, "foundation.seed=5", name="five").record["digest"] != whole.record["digest"]


def test_the_clients_do_not_matter(shared, whole):
    """Streams with the same public split have the same foundation model."""
    epochs = whole.record["parameters"]["pretraining"]["epochs"]
    for stream in ("alone", "tasks"):
        built = make(shared, f"foundation.pretraining.epochs={epochs}", stream=stream, name=f"of-{stream}")
        assert built.record["digest"] == whole.record["digest"]
        assert built.record["stream"] != whole.record["stream"]


@pytest.fixture
def pictures(project):
    """Writes 120 pictures of noise as a Parquet source, of which `changed` rows are black; opens the stream."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["streams"]["digits"] = {
        "source": "parquet:pictures.parquet",
        "clients": 2,
        "experiences": 2,
        "public": 0.3,
        "test": 0.3,
        "foundation": {"general": ["third"]},
    }
    path.write_text(yaml.safe_dump(params))

    def written(changed=()) -> Stream:
        images = pixels.copy()
        images[list(changed)] = 0
        table = {"image": images.tolist(), "label": [i % 4 for i in range(120)], "third": [i % 3 for i in range(120)]}
        pq.write_table(pa.table(table), project / "pictures.parquet")
        return build("digits", stream_parameters(read(project), "digits"), project)

    return written


def test_it_is_made_of_public_samples_only(pictures, project):
    stream = pictures()
    first = make(project)
    public = stream.samples_of(stream.public())
    others = np.setdiff1d(np.arange(120), public)
    assert len(public) > 20 < len(others)
    assert pictures(changed=others).digest != stream.digest
    second = make(project)
    assert second.new, "another stream"
    assert second.record["digest"] == first.record["digest"]
    pictures(changed=public[:1])
    assert make(project).record["digest"] != first.record["digest"]


@pytest.mark.parametrize("modality", ["digits", "texts"])
def test_labels_of_the_streams_classes_are_not_looked_at(modality, shared):
    stream, root = open_stream(modality, shared), shared
    parameters = foundation_parameters(read(root), modality)
    inputs, labels = stream.load(stream.public())
    general = {"by lot": torch.randint(0, 3, (len(labels),), generator=generator(0, "general"))}
    found = []
    for given in (labels, np.random.default_rng(1).permutation(labels), np.zeros_like(labels)):
        backbone = backbones.untrained(parameters, stream.shape)
        found.append(tensors(pretrain(backbone, LocalData(inputs, given), general, parameters.pretraining, 0)))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    other = {"by lot": general["by lot"].flip(0)}
    backbone = backbones.untrained(parameters, stream.shape)
    assert not same(found[0], tensors(pretrain(backbone, LocalData(inputs, labels), other, parameters.pretraining, 0)))


# what it learns


def nearest_mean(built: foundation.Built, stream: Stream) -> float:
    """Test accuracy over the stream's ten classes of the nearest class mean of the public split's features."""
    model = foundation.open_foundation(built.folder)
    public, test = LocalData(*stream.load(stream.public())), everyone(stream)
    known, features = all_features(model, public), all_features(model, test)
    means = torch.stack([known[public.labels == label].mean(dim=0) for label in range(10)])
    return (torch.cdist(features, means).argmin(dim=1) == test.labels).double().mean().item()


def test_general_tasks_are_learnt_and_the_reconstruction_keeps_the_classes_apart(shared):
    stream = open_stream("digits", shared)
    plain = make(shared, *CNN, "foundation.pretraining.reconstruction=0", name="plain")
    with_images = make(shared, *CNN, name="with-images")
    for built in (plain, with_images):
        assert set(built.record["accuracy"]) == {"parity", "above_four"}
        assert min(built.record["accuracy"].values()) > 0.75, "each by chance: 0.5"
    assert nearest_mean(with_images, stream) > nearest_mean(plain, stream) + 0.1


def test_the_recorded_accuracy_is_what_the_opened_model_has(shared, whole):
    stream, model = open_stream("digits", shared), foundation.open_foundation(whole.folder)
    test = everyone(stream)
    parity = model.general["parity"](all_features(model, test)).argmax(dim=1)
    assert (parity == test.labels % 2).double().mean().item() == whole.record["accuracy"]["parity"]


def test_without_general_tasks_images_are_reconstructed(shared):
    built = make(shared, *CNN, "foundation.general=[]", name="images")
    assert built.general == ()
    assert built.record["accuracy"] == {}
    assert nearest_mean(built, open_stream("digits", shared)) > 0.5


@pytest.fixture(scope="module")
def released(shared):
    """Gives the project the weights of a small vision transformer of timm's; its `source` and `weights`."""
    import timm

    network = timm.create_model("test_vit")
    with torch.no_grad():
        for name, each in network.state_dict().items():
            each.copy_(
                (each.ndim == 1 and "weight" in name) + 0.1 * torch.randn(each.shape, generator=generator(0, name))
            )
    torch.save(network.state_dict(), shared / "vit.pth")
    return "foundation.source=timm:test_vit", "foundation.weights=vit.pth", "foundation.size=32"


def test_a_released_backbone_stays_as_it_is_and_gets_heads(shared, released):
    stream = open_stream("digits", shared)
    built = make(shared, *released, name="released")
    assert min(built.record["accuracy"].values()) > 0.65, "each by chance: 0.5"
    from models import released as networks

    parameters = foundation_parameters(read(shared, released), "digits", released)
    pristine = networks.load(parameters, stream.shape, shared, built.folder)
    model = foundation.open_foundation(built.folder)
    assert same(tensors(pristine), tensors(model.backbone))
    assert not any(each.requires_grad for each in model.parameters())
    more = make(shared, *released, "foundation.probe=1", name="hardly")
    assert max(more.record["accuracy"].values()) < max(built.record["accuracy"].values())


def test_heads_read_features_as_they_are(shared, released):
    """The standardisation in which a head is fitted is part of it: the features' unit and origin do not matter."""
    stream = open_stream("digits", shared)
    data = LocalData(*stream.load(stream.public()))
    parameters = foundation_parameters(read(shared), "digits")

    class Shifted(backbones.OwnNetwork):
        def forward(self, inputs):
            return 4 * super().forward(inputs) + 2

    prepare_process()
    plain = backbones.untrained(parameters, stream.shape)
    shifted = Shifted(plain.architecture, plain.network)
    general = {"parity": data.labels % 2}
    one, other = (with_heads(each, data, general, 50, 0) for each in (plain, shifted))
    logits = [model.general["parity"](all_features(model, data)) for model in (one, other)]
    agree, alike = (logits[0].argmax(1) == logits[1].argmax(1)).double().mean(), (logits[0] - logits[1]).abs().max()
    assert agree > 0.98 and alike < 0.3, "but for rounding"
    assert logits[0].abs().max() > 1


# on disk


@pytest.mark.parametrize("kind", ["own", "texts", "released"])
def test_opened_it_gives_the_features_it_was_made_with(kind, shared, released, tmp_path):
    name, sets = ("texts" if kind == "texts" else "digits"), released if kind == "released" else ()
    stream = open_stream(name, shared)
    parameters = foundation_parameters(read(shared, sets), name, sets)
    made, _ = foundation.make(parameters, stream, shared, tmp_path, "cpu")
    opened = foundation.open_foundation(make(shared, *sets, stream=name, name=f"again-{kind}").folder)
    test = everyone(stream)
    assert torch.equal(all_features(made, test), all_features(opened, test))
    assert opened.backbone.description() == made.backbone.description()
    assert set(opened.general) == set(parameters.general)


def written(built: foundation.Built) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted(built.folder.iterdir())]


def test_it_is_made_once_and_again_where_anything_changes(project):
    first = make(project)
    assert first.new
    when = written(first)
    second = make(project)
    assert (second.new, second.record, written(second)) == (False, first.record, when)
    assert make(project, "foundation.pretraining.epochs=2").new
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["streams"]["digits"]["public"] = 0.5
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    build("digits", stream_parameters(params, "digits"), project)
    last = make(project, "foundation.pretraining.epochs=2")
    assert last.new
    assert last.record["digest"] != first.record["digest"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def turned(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (foundation.WEIGHTS, cut),
        (foundation.WEIGHTS, turned),
        (foundation.WEIGHTS, Path.unlink),
        ("foundation.json", cut),
        ("foundation.json", Path.unlink),
        ("foundation.json", lambda path: path.write_text("[]")),
        ("foundation.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_damaged_model_is_refused_and_made_again(file, damage, shared, whole, tmp_path):
    root = Path(shutil.copytree(shared, tmp_path / "project"))
    folder = foundation.place("whole", root)
    damage(folder / file)
    with pytest.raises(InputError) as caught:
        foundation.open_foundation(folder)
    said = "built/foundations/whole: missing or damaged; make it with: fcl foundation STREAM"
    assert str(caught.value) == said
    again = make(root, name="whole")
    assert again.new
    assert again.record == whole.record


def test_a_damaged_tokenizer_is_a_damaged_model(shared, whole, tmp_path):
    folder = Path(shutil.copytree(whole.folder, tmp_path / "model"))
    record = json.loads((folder / "foundation.json").read_text())
    (folder / "tokenizer.json").write_text("words")
    record["beside"] = {"tokenizer.json": foundation.file_digest(folder / "tokenizer.json")}
    (folder / "foundation.json").write_text(json.dumps(record))
    assert foundation.read(folder) == record
    (folder / "tokenizer.json").write_text("swords")
    assert foundation.read(folder) is None


def test_of_two_processes_one_makes_it(project):
    processes = [elsewhere(project, "it") for _ in range(2)]
    said = [process.communicate()[0].split() for process in processes]
    assert sorted(new for new, _ in said) == ["False", "True"]
    assert len({digest for _, digest in said}) == 1
    assert [path.name for path in (project / "built" / "foundations").iterdir()] == ["it"]


def test_a_build_that_is_killed_leaves_nothing_half(project):
    process = elsewhere(project, "it", "foundation.pretraining.epochs=100000")
    place, end = project / "built" / "foundations", time.monotonic() + 60
    while not list(place.glob(".it.*")):
        assert process.poll() is None and time.monotonic() < end, "it never began"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (place / "it").exists()
    assert make(project).new
    assert [path.name for path in place.iterdir()] == ["it"]


# what is refused


@pytest.mark.parametrize(
    ("stream", "sets", "said"),
    [
        ("texts", ("foundation.general=[]",), "foundation.general names no task, so that foundation.source pretrain"),
        ("digits", ("foundation.general=[]", "foundation.pretraining.reconstruction=0"), "foundation.general names no"),
        (
            "digits",
            ("foundation.general=[paritty]",),
            "foundation.general: digits have no task 'paritty'; did you mean",
        ),
        ("texts", ("foundation.general=[odd]",), "foundation.general: texts.parquet has no column 'odd'; expected one"),
        ("texts", ("foundation.general=[label]",), "foundation.general: 'label' is the column of the stream's own"),
        ("texts", ("foundation.network={name: mlp}",), "mlp"),
        ("digits", ("foundation.source=timm:test_vit", "foundation.weights=none.pth"), "none.pth"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line_and_leaves_nothing(stream, sets, said, project):
    with pytest.raises(InputError) as caught:
        make(project, *sets, stream=stream)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((project / "built" / "foundations").iterdir()) == []


@pytest.mark.parametrize("source", ["pretrain", "timm:test_vit"])
def test_without_public_samples_there_is_nothing_to_learn_from(source, project):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["streams"]["digits"]["public"] = 0
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    build("digits", stream_parameters(params, "digits"), project)
    with pytest.raises(
        InputError, match=r"^streams\.digits\.public must be greater than 0 \(got 0\): foundation\.source "
    ):
        make(project, f"foundation.source={source}")


def test_released_without_general_tasks_needs_no_public_samples(shared, released):
    """Nothing is trained, so nothing is read."""
    params = read(shared)
    params["streams"]["digits"]["public"] = 0
    stream = build("private", stream_parameters(params, "digits"), shared)
    sets = (*released, "foundation.general=[]")
    parameters = foundation_parameters(read(shared, sets), "digits", sets)
    built = foundation.build("bare", parameters, stream, shared)
    assert (built.general, built.record["accuracy"]) == ((), {})


def test_every_parameter_is_described():
    pretraining = FoundationParameters.model_fields["pretraining"].annotation
    for model in (FoundationParameters, pretraining):
        assert [key for key, field in model.model_fields.items() if not field.description] == []
