"""Where states and payloads lie: files named by the SHA-256 of their bytes, in any fsspec store.

A file is safetensors (never pickle) whose metadata is one JSON header. safetensors writes several metadata entries in
no fixed order; one entry, keys sorted, gives equal bytes for equal content on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
import safetensors
import safetensors.torch
from torch import Tensor

from errors import InputError

from .files import write_whole
from .patience import patiently

Result = TypeVar("Result")


class Ref(NamedTuple):
    """A stored file: kind (the folder it lies in), SHA-256 of its bytes, and their number."""

    kind: str
    digest: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.digest}.safetensors"


@dataclass(frozen=True)
class Content:
    """A decoded file."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


class DamagedFile(RuntimeError):
    """A stored file that is missing, is not safetensors, or whose bytes are not those that its name promises."""


def encode(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Tensors and header as safetensors bytes: equal content gives equal bytes."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name in sorted(tensors):  # safetensors refuses names that share memory (a teacher that still is the model)
        tensor = tensors[name].contiguous()
        memory = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return safetensors.torch.save(own, {"header": text})


def decode(data: bytes) -> Content:
    """The inverse of `encode`.

    Raises:
        DamagedFile: not safetensors, or without our header.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        header = json.loads(metadata["header"])
        if not isinstance(header, dict):
            raise TypeError("the header is no JSON object")
        return Content(header, safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedFile(f"not a safetensors file with our header ({type(error).__name__})") from None


class Store:
    """Content-addressed files below `url` (a folder or any fsspec URL). Safe for many writers.

    Args:
        url: where the files lie.
        remembered: how many decoded files a process keeps (the broadcast that a cohort's clients share).
        patience: seconds for which what fails is tried again, see `patiently`.
    Every method raises StoreFailed where the store goes on failing or is full.
    """

    def __init__(self, url: str, remembered: int = 4, patience: float = 0.0) -> None:
        self.url, self.patience = url, patience
        try:
            self.fs, self.path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            more = "; s3:// comes with the extra 'cluster' (pip install 'fcl[cluster]')" if "s3" in str(error) else ""
            raise InputError(f"run.store: '{url}' cannot be used ({error}){more}") from None
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self._memory: OrderedDict[Ref, Content] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.Lock()

    def write(self, kind: str, data: bytes) -> Ref:
        """Stores bytes under their digest; a reader never sees half a file."""
        ref = Ref(kind, hashlib.sha256(data).hexdigest(), len(data))
        self.write_as(ref.name, data)
        return ref

    def write_as(self, name: str, data: bytes) -> None:
        """Stores bytes under a name, in place of what was there; a reader never sees half a file."""
        path = f"{self.path}/{name}"
        if not self.local:  # object stores publish an object only when it is complete
            self._try(lambda: self.fs.pipe_file(path, data))
            return
        try:
            self._try(lambda: write_whole(Path(path), data))
        except FileNotFoundError:  # the first file of its kind
            self._try(lambda: Path(path).parent.mkdir(parents=True, exist_ok=True))
            self._try(lambda: write_whole(Path(path), data))

    def put(self, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Ref:
        return self.write(kind, encode(tensors, header))

    def bytes(self, ref: Ref) -> bytes:
        """The stored bytes as they are, unchecked (admission checks them itself)."""
        try:
            path = f"{self.path}/{ref.name}"
            return self._try(Path(path).read_bytes if self.local else lambda: self.fs.cat_file(path))
        except FileNotFoundError:
            raise DamagedFile(f"{ref.name} is missing from {self.url}") from None

    def size(self, ref: Ref) -> int:
        return self._try(lambda: self.fs.size(f"{self.path}/{ref.name}"))

    def intact(self, ref: Ref) -> bool:
        """Whether the file is there and whole, by its bytes; in an object store, which has no half files, by size."""
        try:
            if not self.local:
                return self.size(ref) == ref.size
            return hashlib.sha256(self.bytes(ref)).hexdigest() == ref.digest
        except (FileNotFoundError, DamagedFile):
            return False

    def paths(self, refs: Iterable[Ref]) -> list[Path]:
        """Files and folders to sync, so that `refs` survive a power cut; an object store has kept them: none."""
        files = [Path(self.path, ref.name) for ref in refs] if self.local else []
        return [*files, *{folder for file in files for folder in (file.parent, file.parent.parent)}]

    def get(self, ref: Ref, remember: bool = False) -> Content:
        """The decoded content, its digest verified. With `remember`, this process keeps it for the next reader."""
        with self._lock:
            if ref in self._memory:
                self._memory.move_to_end(ref)
                return self._memory[ref]
        data = self.bytes(ref)
        if hashlib.sha256(data).hexdigest() != ref.digest:
            raise DamagedFile(f"{self.url}/{ref.name} is damaged: its bytes do not have the SHA-256 of its name")
        content = decode(data)
        if remember:
            with self._lock:
                self._memory[ref] = content
                while len(self._memory) > self._remembered:
                    self._memory.popitem(last=False)
        return content

    def keep(self, key: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Keeps the state of a work that is not done under its key, in place of an earlier one."""
        before = self._kept(key)
        ref = self.put("works", tensors, header)
        self.write_as(f"works/{key}", json.dumps(ref).encode())
        if before and before != ref:
            with suppress(FileNotFoundError):
                self._try(lambda: self.fs.rm(f"{self.path}/{before.name}"))

    def kept(self, key: str) -> Content | None:
        """What `keep` kept last, or None; a state that is damaged is none: the work begins anew."""
        ref = self._kept(key)
        try:
            return self.get(ref) if ref else None
        except DamagedFile:
            return None

    def _kept(self, key: str) -> Ref | None:
        try:
            kind, digest, size = json.loads(self._try(lambda: self.fs.cat_file(f"{self.path}/works/{key}")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return Ref(kind, digest, size)

    def move(self, ref: Ref, kind: str) -> None:
        """Puts a file under another kind."""
        self._try(lambda: self.fs.makedirs(f"{self.path}/{kind}", exist_ok=True))
        self._try(lambda: self.fs.mv(f"{self.path}/{ref.name}", f"{self.path}/{ref._replace(kind=kind).name}"))

    def keep_only(self, kind: str, wanted: Iterable[Ref]) -> None:
        """Deletes every file of `kind` that is not wanted, leftovers of killed writers included."""
        names = {Path(ref.name).name for ref in wanted}
        self._try(lambda: self._keep_only(f"{self.path}/{kind}", names))

    def _keep_only(self, folder: str, wanted: set[str]) -> None:
        if self.local:
            for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                if entry.name not in wanted:
                    os.unlink(entry.path)
            return
        self.fs.invalidate_cache(folder)  # others write here, too
        if self.fs.exists(folder):
            unwanted = [path for path in self.fs.ls(folder, detail=False) if Path(path).name not in wanted]
            if unwanted:
                self.fs.rm(unwanted)
            self.fs.invalidate_cache(folder)

    @contextmanager
    def probe(self) -> Iterator[Ref]:
        """A small file that lies in the store for as long as the context lasts.

        Raises:
            InputError: the store cannot be written to.
        """
        try:
            ref = self.write("probes", uuid.uuid4().bytes)
        except Exception as error:  # each file system has its own: no credentials, no such bucket, no connection
            raise InputError(
                f"run.store: '{self.url}' cannot be written to ({type(error).__name__}: {error})"
            ) from None
        try:
            yield ref
        finally:
            if self.local:
                os.unlink(f"{self.path}/{ref.name}")
                with suppress(OSError):
                    os.removedirs(f"{self.path}/{ref.kind}")  # up to the first folder that something else lies in
            else:
                self.fs.rm(f"{self.path}/{ref.name}")

    def check(self) -> None:
        """Writes, reads and deletes a small file.

        Raises:
            InputError: the store cannot be used.
        """
        with self.probe() as ref:
            self.bytes(ref)

    def clear(self) -> None:
        """Deletes everything but what was refused."""
        for kind in ("states", "broadcasts", "uploads", "works"):
            self.keep_only(kind, ())

    def _try(self, attempt: Callable[[], Result]) -> Result:
        return patiently(attempt, self.url, self.patience, remote=not self.local)
