"""Released image networks of timm as backbones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from errors import InputError

from .foundation import FoundationParameters
from .released_images import ImageBackbone, whole_patches
from .released_weights import Undrawn, fill, hub_folder, one_line, read


def structure_of(parameters: FoundationParameters) -> dict[str, Any]:
    """What `backbone` builds from: the name, the preprocessing that timm states, the size asked for."""
    import timm

    name = parameters.source.partition(":")[2]
    if not timm.is_model(name):
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them"
        raise InputError(f"foundation.source: timm has no model '{name}'; {hint}")
    try:
        about = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as problem:
        raise InputError(f"foundation.source: timm:{name} is unknown to timm ({one_line(problem)})") from None
    channels, own, _ = about.input_size
    size = parameters.size or own
    # networks whose parameters depend on the size are told it when they are built, convolutional ones are not
    options = {"img_size": size} if about.fixed_input_size and size != own else {}
    stated = {"size": size, "mean": list(about.mean), "std": list(about.std)}
    return {"kind": "timm", "name": name, "options": options, "channels": channels, **stated}


def backbone(structure: Mapping[str, Any]) -> ImageBackbone:
    import timm

    with Undrawn():
        network = timm.create_model(structure["name"], pretrained=False, num_classes=0, **structure["options"])
    for module in network.modules():  # fused kernels sum gradients in no fixed order on CUDA, see `Attention`
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    if hasattr(getattr(network, "patch_embed", None), "patch_size"):
        whole_patches(structure["size"], network.patch_embed.patch_size)
    ends = (".attn.qkv", ".attn.proj")
    linear = (name for name, each in network.named_modules() if isinstance(each, nn.Linear) and name.endswith(ends))
    return ImageBackbone(network, structure, list(linear))


def fill_in(built: ImageBackbone, parameters: FoundationParameters, root: Path) -> None:
    """Fills a file's weights in, or those of the repository on the Hugging Face hub that timm names."""
    network, about = built.network, built.network.pretrained_cfg
    path = root / parameters.weights
    if parameters.weights == "released":
        if not about.get("hf_hub_id"):
            raise InputError(f"foundation.weights: timm has released none for {parameters.source}; give a file")
        folder = hub_folder(about["hf_hub_id"].partition("@")[0])
        path = next(
            filter(Path.is_file, (folder / name for name in ("model.safetensors", "pytorch_model.bin"))), folder
        )
    state = read(path)
    # timm's own changes to what was released: position embeddings at another size, names of other authors
    filter_ = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        state = filter_(state, network) if filter_ else state
    except (KeyError, RuntimeError, ValueError, AssertionError) as problem:
        raise InputError(
            f"foundation.weights: {path} does not hold the weights of {parameters.source} ({one_line(problem)})"
        ) from None
    heads = about["classifier"] or ()
    fill(network, state, (heads,) if isinstance(heads, str) else heads, str(path))
