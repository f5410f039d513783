"""Released weights: where they come from, and how they are filled into a network that was built without drawing any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from errors import InputError

TIMEOUT = 10  # seconds until a server counts as out of reach
BRING = "without network, point foundation.weights (timm, torchvision) or hf:PATH to a copy on this disk"


class Undrawn(TorchDispatchMode):
    """Inside, constructors draw no initial values from the generator that the whole process shares.

    What would be drawn in place is 0, anything else comes from a generator of its own: the values are replaced by
    released ones anyway. Per thread, unlike a saved and restored generator; and large networks are built sooner.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func._schema.name.endswith("_"):
            return args[0].zero_()
        if all(each.name != "generator" for each in func._schema.arguments):
            overload = func._overloadname
            func = getattr(func.overloadpacket, "generator" if overload == "default" else f"{overload}_generator")
        return func(*args, **kwargs | {"generator": torch.Generator()})


def one_line(problem: Exception) -> str:
    """The first line of what a library complains about: an error of ours is one sentence."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__).strip().rstrip(".")


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pth file; one that lies under "state_dict" or "model" is taken from there.

    Raises:
        InputError: no such file, or none with tensors by name.
    """
    if not path.is_file():
        raise InputError(f"foundation.weights: no file {path}; {BRING}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as problem:
            raise InputError(f"foundation.weights: {path} is not in safetensors format ({one_line(problem)})") from None
    try:  # tensors and plain values only: nothing in the file is executed
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # bytes that are no weights make it stumble in many ways
        raise InputError(
            f"foundation.weights: {path} is no .safetensors file and torch.load finds no weights ({one_line(problem)})"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not isinstance(held, Mapping) or not all(isinstance(each, Tensor) for each in held.values()):
        raise InputError(
            f"foundation.weights: {path} must hold a state dict, tensors by name (got {type(held).__name__})"
        )
    return dict(held)


def fill(network: nn.Module, state: Mapping[str, Tensor], heads: Sequence[str], origin: str) -> None:
    """Fills released weights in; all of the network's must be there, and besides them only a classifier.

    Args:
        heads: names of the modules that classify, which the network does not have any more ("head", "head.fc"): what is
            left of their top-level module in `state` is ignored.
        origin: where `state` is from, for the error.
    Raises:
        InputError: other names or shapes than the network's.
    """
    wanted, tops = network.state_dict(), {head.partition(".")[0] for head in heads}
    kept = {name: each for name, each in state.items() if name in wanted or name.partition(".")[0] not in tops}
    derived = {name for name in wanted if name.endswith("num_batches_tracked")}  # files from before PyTorch 0.4.1
    wrong = {
        "lacks": [name for name in wanted if name not in kept and name not in derived],
        "has the unknown": [name for name in kept if name not in wanted],
        "has another shape of": [name for name in kept if name in wanted and kept[name].shape != wanted[name].shape],
    }
    said = [f"{what} {names[0]} and {len(names) - 1} more" for what, names in wrong.items() if names]
    if said:
        raise InputError(
            f"foundation.weights: {origin} does not hold the weights of foundation.source: {', '.join(said)}"
        )
    network.load_state_dict(kept, strict=False)


def hub_folder(name: str) -> Path:
    """The files of the repository `name` of the Hugging Face hub, downloaded, or as they are in the library's cache.

    One request with a time limit asks whether the hub answers at all: its client tries for most of a minute.

    Raises:
        InputError: no such repository, or the hub is out of reach and the cache does not have it.
    """
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        about = HfApi().model_info(name, timeout=TIMEOUT)
        files = [each.rfilename for each in about.siblings or () if "/" not in each.rfilename]
        ends = (".json", ".txt", ".model", ".safetensors")
        if not any(each.endswith(".safetensors") for each in files):
            ends += (".bin",)
        return Path(snapshot_download(name, allow_patterns=[each for each in files if each.endswith(ends)]))
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise InputError(f"foundation.source: no public repository '{name}' on the hub ({one_line(problem)})") from None
    except Exception as problem:  # the client lets the errors of whatever HTTP library it uses through
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent
        raise InputError(
            f"foundation.source: {name} is not in the cache and cannot be downloaded ({one_line(problem)}); {BRING}"
        ) from None
