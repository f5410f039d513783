"""Released networks in Hugging Face layout, images and texts: opening a folder or a hub name, and image backbones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError

from .foundation import FoundationParameters
from .released_images import ImageBackbone, whole_patches
from .released_weights import BRING, Undrawn, hub_folder, one_line

# names that the library gives the linear layers for queries and values, or for queries, keys and values in one
QUERIES_VALUES = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v")
QUERIES_VALUES += ("c_attn", "query_key_value", "qkv", "Wqkv")


def folder_of(parameters: FoundationParameters, root: Path) -> Path:
    """The folder that `hf:PATH_OR_NAME` names, downloaded where it is the name of a hub repository.

    Raises:
        InputError: neither a folder nor a name that can be downloaded, or `foundation.weights` is set as well.
    """
    name = parameters.source.partition(":")[2]
    if parameters.weights != "released":
        raise InputError(
            f"foundation.weights is for timm and torchvision: the weights of hf:{name} lie with its config"
        )
    if (root / name).is_dir():
        return root / name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"foundation.source: no folder {root / name} with config.json and model.safetensors; {BRING}")
    return hub_folder(name)


def load_network(folder: Path) -> nn.Module:
    """The network in `folder` without any head, float32, attention in plain operations (no fused kernels).

    Raises:
        InputError: no folder of a network that the library knows, or weights are missing in it.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    local = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        with Undrawn():
            network, report = AutoModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", **local
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        raise InputError(f"foundation.source: no network can be loaded from {folder} ({one_line(problem)})") from None
    reduced(network)
    missing = sorted(set(report["missing_keys"]) & set(network.state_dict()))
    if missing:
        raise InputError(f"foundation.source: {folder} lacks the weights {missing[0]} and {len(missing) - 1} more")
    return network


def built_network(config: Mapping[str, Any]) -> nn.Module:
    """The structure of `load_network` from its `config_of`, weights still to be filled in."""
    from transformers import AutoConfig, AutoModel

    with Undrawn():
        network = AutoModel.from_config(
            AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    return reduced(network)


def config_of(network: nn.Module) -> dict[str, Any]:
    """The network's configuration in plain values, without the place where it was found."""
    config = json.loads(network.config.to_json_string(use_diff=False))
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def class_token(network: nn.Module) -> bool:
    return hasattr(getattr(network, "embeddings", None), "cls_token")


def reduced(network: nn.Module) -> nn.Module:
    """The network without what its features do not need.

    That is the layer behind the class token, which many releases do not hold, and a decoder's memory of earlier tokens.
    """
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    unused = network.main_input_name == "input_ids" or class_token(network)
    if unused and isinstance(getattr(network, "pooler", None), nn.Module):
        network.pooler = None
    return network


def adaptable(network: nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, each in network.named_modules() if isinstance(each, (nn.Linear, Conv1D))]
    return [name for name in linear if name.rpartition(".")[2] in QUERIES_VALUES]


class HuggingFaceImages(ImageBackbone):
    """Features are the class token of the last layer, or what the network pools where there is none."""

    def __init__(self, network: nn.Module, structure: Mapping[str, Any]) -> None:
        super().__init__(network, structure, adaptable(network))
        own = structure["config"].get("image_size")
        whole_patches(structure["size"], structure["config"].get("patch_size") or 1)
        other_size = own is not None and structure["size"] != (own[0] if isinstance(own, list) else own)
        self.options = {"interpolate_pos_encoding": True} if other_size else {}

    def pooled(self, images: Tensor) -> Tensor:
        found = self.network(pixel_values=images, **self.options)
        if class_token(self.network):
            return found.last_hidden_state[:, 0]
        return found.pooler_output.flatten(1)


def image_structure(network: nn.Module, folder: Path, parameters: FoundationParameters) -> dict[str, Any]:
    """What `HuggingFaceImages` needs besides the network; preprocessing as in preprocessor_config.json.

    Without that file: mean and standard deviation 0.5, and the size in the network's configuration, or 224 pixels.
    """
    path, config = folder / "preprocessor_config.json", config_of(network)
    stated = json.loads(path.read_text()) if path.is_file() else {}
    size = stated.get("crop_size") if stated.get("do_center_crop") else stated.get("size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    own = size or config.get("image_size") or 224
    channels = config.get("num_channels", 3)
    normal = {"mean": [0.5] * channels, "std": [0.5] * channels}
    if not stated.get("do_normalize", True):
        normal = {"mean": [0.0] * channels, "std": [1.0] * channels}
    elif "image_mean" in stated:
        scale = 255 * stated.get("rescale_factor", 1 / 255)  # mean and std are of pixels times that factor
        normal = {key: [each / scale for each in stated[f"image_{key}"]] for key in normal}
    size = parameters.size or (own[0] if isinstance(own, list) else own)
    return {"kind": "hf", "modality": "image", "config": config, "channels": channels, "size": size, **normal}
