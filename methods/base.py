"""The contract between a round and a method: what differs between algorithms and nothing more.

A round asks a method, in this order:

    start()                 server state before any training          (once)
    start_client(i)         client state before its first training    (once a client)
    prepare(server, ...)    what the server decides before a round, and `tables` that tell of it
    broadcast(server, ...)  what goes down to each client
    train(client)           what a client does, keeps and sends back
    expects(server, ...)    the names, shapes and types that an honest upload has
    check(message)          what else an honest upload is
    fusion_jobs(...)        the independent jobs of the fusion, by name
    fuse(job, ...)          one job: a part of the next server state; a long one is `fuse_on`
    join(server, parts)     the next server state
    end_experience(...)     what changes when an experience ends
    finish(client)          a client's last step, after all rounds
    predictor(kind, ...)    the models to be evaluated
    general(server)         the same for a foundation model's general tasks

Device placement, files, messages, scheduling, checkpoints and logging are the pipeline's business: a method imports
torch and nothing above this package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from errors import InputError, nearest
from validation import Section

from .setting import CENTRE, Setting
from .state import Message, Moment, State
from .training import Client, Update

Scope = Literal["server", "client"]


class Upload(Protocol):
    """An admitted upload. `message` is read from the store each time, so that fusion holds one in memory, not all."""

    client: int
    samples: int

    @property
    def message(self) -> Message: ...


class Method(ABC):
    """Base of all methods. Subclasses are registered by name: `@register("fedavg")`."""

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for `fcl methods`: the docstring's first
    # The kinds of model that are evaluated and who holds them; the first is the method's main model.
    evaluates: ClassVar[Mapping[str, Scope]] = {"global": "server"}
    # Kinds among them that are told the experience of a sample, and choose among its classes only (multi-head).
    told: ClassVar[frozenset[str]] = frozenset()
    # True for upper bounds that break the rule that data stay with the clients: one participant holds all data so far.
    centralised: ClassVar[bool] = False
    # Whether clients may have different networks (`models: [...]`).
    heterogeneous: ClassVar[bool] = False
    # Whether the server learns from the stream's public split.
    needs_public: ClassVar[bool] = False
    # Whether it works with a foundation model (the section `foundation`).
    needs_foundation: ClassVar[bool] = False
    # Whether it knows streams in which clients have different tasks; `register` says so, it is not inherited.
    multitask: ClassVar[bool] = False
    # Whether clients take a last step after all rounds, see `finish`.
    finishes: ClassVar[bool] = False
    # Whether it works with the clients' simulated devices (the section `devices`): its updates say their `time`.
    needs_devices: ClassVar[bool] = False

    class Params(Section):
        """The method's own section `methods.NAME` of params.yaml."""

    def __init__(self, params: Section, setting: Setting) -> None:
        self.params = params
        self.setting = setting

    @classmethod
    def is_oracle(cls, params: Section) -> bool:
        """Whether these parameters say that the server may look at the clients' data. Default: never."""
        return False

    @property
    def participants(self) -> tuple[int, ...]:
        return (CENTRE,) if self.centralised else tuple(range(self.setting.clients))

    # the server's side

    def start(self) -> State:
        """The server state before any training. Default: nothing."""
        return State()

    def prepare(self, server: State, clients: Sequence[int], moment: Moment) -> State:
        """What the server decides before a round: the state that the round begins with. Default: as it is."""
        return server

    def tables(self, server: State, moment: Moment) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What `prepare` decided, as rows of plain values for the tables of the results, by their names. Default: none.

        Every row of a table has the same keys; `experience` and `round` are put before them.
        """
        return {}

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        """What goes down to each sampled client (None: nothing). One object for several clients is written once."""
        return dict.fromkeys(clients)

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        """Names, shapes and types of the tensors that `client` must upload. Default: nothing crosses."""
        return {}

    def check(self, message: Message) -> None:  # noqa: B027 - most methods have nothing to add
        """What an upload of the right form must also fulfil, such as indices within their range. Default: nothing.

        Raises:
            ValueError: it does not, in words; the upload is then refused.
        """

    def fusion_jobs(self, clients: Sequence[int], moment: Moment) -> tuple[str, ...]:
        """The independent jobs of fusing these clients' uploads, each a task with its own name. Default: one."""
        return ("all",)

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        """One job of the fusion; `uploads` come in the order of their clients. Default: the server keeps its state."""
        return server

    def fuse_on(
        self, job: str, server: State, uploads: Sequence[Upload], moment: Moment, begun: State | None
    ) -> Iterator[State]:
        """One job as a row of states, each of which it can go on from; the last is its result. Default: `fuse` alone.

        For jobs that take long: every now and then a state is kept, and a killed job goes on from there.

        Args:
            begun: the last state that was kept, or None at the beginning.
        """
        yield self.fuse(job, server, uploads, moment)

    def join(self, server: State, parts: Mapping[str, State], moment: Moment) -> State:
        """The next server state from the jobs' results. Default: that of the only job."""
        (state,) = parts.values()
        return state

    def end_experience(self, server: State, experience: int) -> State:
        """The server state after the last round of `experience`. Default: as it is."""
        return server

    # the client's side

    def start_client(self, client: int) -> State:
        """A client's state before its first training. Default: nothing."""
        return State()

    @abstractmethod
    def train(self, client: Client) -> Update:
        """What a client does in a round."""

    def finish(self, client: Client) -> Update:
        """A client's last step, after all rounds of the last experience; `received` is the last broadcast.

        Asked where `finishes`, of every client, whose data are those of the last experience in which it has any;
        nothing is sent back.
        """
        raise NotImplementedError(f"{self.name} has no last step")

    # what is measured

    @abstractmethod
    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        """The model of `kind`: inputs (batch, ...) -> logits (batch, classes).

        Args:
            client: the holder's state; nothing where the server holds the model.
            holder: the client, or CENTRE where the server holds the model.
        """

    def general(self, server: State) -> Mapping[str, nn.Module]:
        """The server's model in each general task of the foundation model: inputs -> logits. Default: none.

        How well it still does them is measured after every experience: retention of general ability.
        """
        return {}


_methods: dict[str, type[Method]] = {}


def register(name: str, multitask: bool = False) -> Callable[[type[Method]], type[Method]]:
    """Makes a method known by `name` to params.yaml, the command line and the conformance tests.

    Args:
        multitask: it knows streams in which clients have different tasks (source `tasks`).
    """

    def add(method: type[Method]) -> type[Method]:
        method.name, method.multitask = name, multitask
        method.summary = (method.__doc__ or name).strip().splitlines()[0].rstrip(".")
        _methods[name] = method
        return method

    return add


def names() -> list[str]:
    return sorted(_methods)


def get(name: str) -> type[Method]:
    if name not in _methods:
        raise InputError(f"no method '{name}'; {nearest(name, _methods)} (fcl methods lists all)")
    return _methods[name]
