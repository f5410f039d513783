"""Released backbones: small networks saved in the layout of each library, loaded, built again, adapted.

Nothing is downloaded. Weights are drawn from named generators and written to files as the libraries write them.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from errors import InputError
from models import released
from models.foundation import FoundationParameters
from models.released_torchvision import renamed, written_out
from models.released_weights import Undrawn
from randomness import generator

DIM = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SENTENCES = ("a federation of learners", "memory", "", "learners of a memory of memory, of a federation")


@pytest.fixture(autouse=True, scope="module")
def no_hub(tmp_path_factory):
    """Caches of downloads that are empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


def drawn(network: nn.Module) -> nn.Module:
    """Gives every tensor values around those of a normalisation layer; running variances stay positive."""
    with torch.no_grad():
        for name, each in network.state_dict().items():
            if each.is_floating_point():
                centre = 1.0 if each.ndim == 1 and name.endswith(("weight", "running_var")) else 0.0
                each.copy_(centre + 0.1 * torch.randn(each.shape, generator=generator(0, name)).clamp(-3, 3))
    return network.eval()


def images(shape, count=3) -> torch.Tensor:
    return torch.rand(count, *shape, generator=generator(0, "images")) * 2 - 1


def texts(*written: str, length: int = 64) -> torch.Tensor:
    return torch.tensor([list(each.encode()[:length].ljust(length, b"\0")) for each in written], dtype=torch.uint8)


def timm_files(root) -> dict:
    import timm

    torch.save(drawn(timm.create_model("test_vit")).state_dict(), root / "test_vit.pth")  # with its classifier
    return {"source": "timm:test_vit", "weights": "test_vit.pth"}


def timm_eva_files(root) -> dict:
    """A network that reads the weights of its layers for queries, keys and values without calling them."""
    import timm

    torch.save(drawn(timm.create_model("eva02_tiny_patch14_224")).state_dict(), root / "eva.pth")
    return {"source": "timm:eva02_tiny_patch14_224", "weights": "eva.pth", "size": 28}


def resnet_files(root) -> dict:
    import torchvision
    from safetensors.torch import save_file

    network = torchvision.models.resnet18(weights=None)
    save_file(drawn(network).state_dict(), root / "resnet18.safetensors")
    return {"source": "torchvision:resnet18", "weights": "resnet18.safetensors"}


def torchvision_vit_files(root) -> dict:
    """Rows of every weight are equal, so that the file holds one of each: it would be 330 MB."""
    import torchvision

    with torch.device("meta"):
        shapes = {name: each.shape for name, each in torchvision.models.vit_b_16().state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        row = 0.05 * torch.randn(shape[-1:], generator=generator(0, name))
        state[name] = (row + 1 if "ln" in name and name.endswith("weight") else row).expand(shape)
    torch.save({"model": state}, root / "vit_b_16.pth")
    return {"source": "torchvision:vit_b_16", "weights": "vit_b_16.pth", "size": 32}


def hf_vit_files(root) -> dict:
    from transformers import ViTConfig, ViTForImageClassification

    network = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **DIM))
    drawn(network).save_pretrained(root / "vit")
    stated = {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (root / "vit/preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor"} | stated)
    )
    return {"source": "hf:vit"}


def hf_resnet_files(root) -> dict:
    from transformers import ResNetConfig, ResNetModel

    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    drawn(network).save_pretrained(root / "resnet")
    return {"source": "hf:resnet", "size": 40}


def bert_files(root) -> dict:
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    (root / "bert").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "of", "memory", "federation", "learn", "##ers", ","]
    (root / "bert/vocab.txt").write_text("\n".join(words))
    BertTokenizerFast.from_pretrained(root / "bert").save_pretrained(root / "bert")
    network = BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=12, **DIM))
    drawn(network).save_pretrained(root / "bert")
    return {"source": "hf:bert"}


def gpt2_files(root) -> dict:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: i for i, each in enumerate([*alphabet, "<|endoftext|>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(root / "gpt2")
    network = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=40, n_embd=16, n_layer=2, n_head=2))
    drawn(network).save_pretrained(root / "gpt2")
    return {"source": "hf:gpt2"}


KINDS = {
    "timm": (timm_files, (3, 40, 40)),
    "timm_eva": (timm_eva_files, (3, 28, 28)),
    "resnet": (resnet_files, (3, 48, 48)),
    "torchvision_vit": (torchvision_vit_files, (3, 32, 32)),
    "hf_vit": (hf_vit_files, (1, 8, 8)),
    "hf_resnet": (hf_resnet_files, (3, 32, 32)),
    "bert": (bert_files, (64,)),
    "gpt2": (gpt2_files, (64,)),
}


class Case:
    """A released network on disk, loaded."""

    def __init__(self, kind: str, root) -> None:
        files, self.shape = KINDS[kind]
        self.root, self.folder = root, root / "built"
        self.folder.mkdir()
        with Undrawn():  # constructors of the libraries would draw from the process's generator
            self.given = files(root)
        self.backbone = self.load()
        self.inputs = texts(*SENTENCES) if len(self.shape) == 1 else images(self.shape)

    def load(self, shape=None, **changed):
        parameters = FoundationParameters(**self.given | changed)
        before = torch.get_rng_state()
        try:
            return released.load(parameters, shape or self.shape, self.root, self.folder)
        finally:
            assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from the generator that all share"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    known: dict[str, Case] = {}

    def get(kind: str) -> Case:
        if kind not in known:
            known[kind] = Case(kind, tmp_path_factory.mktemp(kind))
        return known[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_built_again_it_gives_the_same_features_to_the_bit(kind, case):
    case = case(kind)
    before = torch.get_rng_state()
    description = json.loads(json.dumps(case.backbone.description()))
    again = released.rebuild(description, case.folder)
    again.load_state_dict(case.backbone.state_dict(), strict=True)
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn from the generator that all share"
    with torch.no_grad():
        features = case.backbone(case.inputs)
        assert torch.equal(again(case.inputs), features)
    assert features.shape == (len(case.inputs), again.width) and again.width == case.backbone.width
    assert features.isfinite().all() and not torch.equal(features[0], features[1])
    assert again.description() == case.backbone.description()
    assert again.adaptable == case.backbone.adaptable
    assert not any(each.training for each in again.modules())
    assert {name: each.shape for name, each in again.named_buffers()} == {
        name: each.shape for name, each in case.backbone.named_buffers()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_go_into_a_copy_and_start_as_the_identity(kind, case):
    from peft import LoraConfig, inject_adapter_in_model

    case = case(kind)
    if "resnet" in kind:
        assert case.backbone.adaptable == ()
        return
    copied = copy.deepcopy(case.backbone)
    count = len(case.backbone.adaptable)
    assert count >= 2
    inject_adapter_in_model(LoraConfig(r=2, target_modules=list(copied.adaptable)), copied)
    copied.eval()
    adapters = {name: each for name, each in copied.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * count
    with torch.no_grad():
        expected = case.backbone(case.inputs)
        assert torch.equal(copied(case.inputs), expected)
        for name, each in adapters.items():
            if "lora_B" in name:
                each.normal_(generator=generator(1, name))
    moved = copied(case.inputs)
    assert not torch.allclose(moved, expected, atol=1e-3), "adapters act"
    moved.square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in adapters.values()), "every adapter is called"


def test_timm_features_are_those_of_the_library(case):
    import timm

    case = case("timm")
    with Undrawn():
        network = timm.create_model("test_vit", num_classes=0)
    network.load_state_dict(case.backbone.network.state_dict())
    stated = timm.data.resolve_model_data_config(network)
    assert stated["input_size"] == (3, 160, 160)
    whole = images((3, 160, 160))
    mean, std = (torch.tensor(stated[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(case.backbone(whole), network.eval()(((whole + 1) / 2 - mean) / std))


def test_torchvision_features_are_what_its_classifier_reads(case):
    import torchvision

    case = case("resnet")
    with Undrawn():
        network = torchvision.models.resnet18(weights=None)
    state = {name: each for name, each in torchvision_state(case).items() if not name.startswith("fc.")}
    network.load_state_dict(state, strict=False)
    network.fc = nn.Identity()
    own = images((3, 224, 224), count=1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(case.backbone(own), network.eval()(((own + 1) / 2 - mean) / std))


def torchvision_state(case):
    from safetensors.torch import load_file

    return load_file(case.root / case.given["weights"])


def test_attention_written_out_is_torchs_own():
    from torchvision.models import VisionTransformer

    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    with Undrawn():
        fused = drawn(VisionTransformer(image_size=16, patch_size=8, **options))
        ours = written_out(VisionTransformer(image_size=16, patch_size=8, **options)).eval()
    ours.load_state_dict(renamed(fused.state_dict()), strict=True)
    inputs = images((3, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), fused(inputs))


def test_images_are_prepared_as_the_librarys_processor_does(case):
    from transformers import ViTImageProcessor

    case = case("hf_vit")
    processor = ViTImageProcessor.from_pretrained(case.root / "vit")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=generator(0, "pixels"), dtype=torch.uint8)
    expected = processor(list(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(case.backbone.prepared(pixels / 127.5 - 1), expected, atol=1e-5, rtol=0)
    smooth = torch.arange(16).view(1, 1, 16).expand(3, 16, 16).mul(15).to(torch.uint8)
    expected = processor([smooth], return_tensors="pt")["pixel_values"]
    scaled = case.backbone.prepared(smooth[None] / 127.5 - 1)
    torch.testing.assert_close(scaled, expected, atol=0.51 / 255 / 0.2, rtol=0)  # theirs is rounded to whole pixels


def test_grey_is_three_equal_channels(case):
    case = case("hf_vit")
    grey = images((1, 8, 8))
    with torch.no_grad():
        assert torch.equal(case.backbone(grey), case.backbone(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("kind", ["timm", "hf_vit"])
def test_another_size_scales_the_positions(kind, case):
    case = case(kind)
    changed = case.load(size=64)
    with torch.no_grad():
        assert changed.prepared(case.inputs).shape == (3, 3, 64, 64)
        assert changed(case.inputs).shape == (3, case.backbone.width)
    again = released.rebuild(changed.description(), case.folder)
    again.load_state_dict(changed.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again(case.inputs), changed(case.inputs))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_padding_does_not_change_the_features_of_a_text(kind, case):
    case = case(kind)
    with torch.no_grad():
        together = case.backbone(texts(*SENTENCES))
        alone = torch.cat([case.backbone(texts(each, length=80)) for each in SENTENCES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_text_features_are_the_mean_over_the_librarys_own_tokens(kind, case):
    from transformers import AutoModel, AutoTokenizer

    case = case(kind)
    source = case.root / kind
    with Undrawn():
        network = AutoModel.from_pretrained(source).eval()
    text = "memory of a federation"
    tokens = AutoTokenizer.from_pretrained(source)(text, return_tensors="pt")
    with torch.no_grad():
        expected = network(**tokens).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(case.backbone(texts(text)), expected, atol=1e-5, rtol=1e-5)


def test_a_text_without_tokens_has_the_features_0(case):
    assert not case("gpt2").backbone(texts("", "")).any()


def test_a_long_text_is_cut_where_the_network_ends(case):
    backbone = case("bert").backbone  # 12 places, 2 of them for the ends
    ten, more = " ".join(["memory"] * 10), " ".join(["memory"] * 10 + ["learners"])
    with torch.no_grad():
        assert torch.equal(backbone(texts(ten, length=100)), backbone(texts(more, length=100)))


def test_half_a_character_at_the_end_is_left_out(case):
    backbone = case("gpt2").backbone
    with torch.no_grad():
        assert torch.equal(backbone(texts("abcé", length=4)), backbone(texts("abc", length=4)))


@pytest.mark.parametrize(
    ("kind", "changed", "shape", "said"),
    [
        (
            "timm",
            {"source": "timm:test_vitt"},
            None,
            r"foundation\.source: timm has no model 'test_vitt'; did you mean test_vit",
        ),
        ("timm", {"source": "timm:test_vit.none"}, None, r"foundation\.source: timm:test_vit\.none is unknown"),
        ("timm", {"weights": "none.pth"}, None, r"foundation\.weights: no file .*none\.pth; without network"),
        ("timm", {"source": "timm:test_resnet"}, None, r"foundation\.weights: .*test_vit\.pth does not hold"),
        ("timm", {"source": "timm:test_vit2"}, None, r"foundation\.weights: .*test_vit\.pth does not hold"),
        ("timm", {"size": 36}, None, r"foundation\.size must be a multiple .* 16 pixels \(got 36\)"),
        ("timm", {}, (40,), r"foundation\.source: timm:test_vit reads images of shape \(channels, height, width\)"),
        ("timm", {}, (2, 8, 8), r"foundation\.source: timm:test_vit reads images of 1 or 3 channels \(got 2\)"),
        ("resnet", {"source": "torchvision:resnet19"}, None, r"foundation\.source: torchvision has no .*did you mean"),
        ("resnet", {"source": "torchvision:resnet34"}, None, r"foundation\.weights: .* does not hold .* lacks layer"),
        ("resnet", {"source": "torchvision:vit_b_16", "size": 40}, None, r"foundation\.size must be a multiple"),
        ("hf_vit", {"source": "hf:./none"}, None, r"foundation\.source: no folder .*none with config\.json"),
        ("hf_vit", {"source": "hf:built"}, None, r"foundation\.source: no network can be loaded from .*built"),
        ("hf_vit", {"size": 36}, None, r"foundation\.size must be a multiple"),
        ("hf_vit", {"weights": "vit"}, None, r"foundation\.weights is for timm and torchvision"),
        ("bert", {}, (1, 8, 8), r"foundation\.source: hf:bert reads texts of shape \(length\)"),
        ("bert", {"size": 32}, None, r"foundation\.size is for images"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(kind, changed, shape, said, case):
    with pytest.raises(InputError, match=said) as caught:
        case(kind).load(shape, **changed)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_in_a_folder_are_no_random_ones(case, tmp_path):
    from safetensors.torch import load_file, save_file

    source = case("hf_vit").root / "vit"
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((source / name).read_text())
    state = load_file(source / "model.safetensors")
    del state["vit.embeddings.cls_token"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights embeddings\.cls_token"):
        released.load(FoundationParameters(source=f"hf:{tmp_path}"), (3, 32, 32), tmp_path, tmp_path)


@pytest.mark.parametrize("written", [b"", b"no weights", b"\x08\0\0\0\0\0\0\0{}      "])
@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_file_without_weights(written, name, case, tmp_path):
    (tmp_path / name).write_bytes(written)
    with pytest.raises(InputError, match=r"foundation\.weights: .*broken"):
        case("timm").load(weights=str(tmp_path / name))


def out_of_reach(monkeypatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens at the port `discard`


def test_what_was_downloaded_before_needs_no_network(case, monkeypatch):
    from huggingface_hub import constants

    out_of_reach(monkeypatch)
    case = case("bert")
    commit = "0" * 40
    cached = Path(constants.HF_HUB_CACHE) / "models--somebody--bert"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    shutil.copytree(case.root / "bert", cached / "snapshots" / commit)
    again = case.load(source="hf:somebody/bert")
    with torch.no_grad():
        assert torch.equal(again(case.inputs), case.backbone(case.inputs))


@pytest.mark.parametrize(
    "source", ["timm:test_vit", "torchvision:resnet18", "hf:sentence-transformers/all-MiniLM-L6-v2"]
)
def test_without_network_it_says_so_at_once(source, tmp_path, monkeypatch):
    out_of_reach(monkeypatch)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"foundation\.(source|weights): .*without network"):
        released.load(FoundationParameters(source=source), (3, 32, 32), tmp_path, tmp_path)
    assert time.monotonic() - start < 20
