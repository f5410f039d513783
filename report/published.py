"""The claims of the four papers, and where each is tested: digits (`make repro`) and CIFAR-100 (paper/).

Source: the papers' abstracts, as far as they could be obtained
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .claims import Claim, Place
from .comparisons import Above, Beyond, Check, Falls, Sooner

FCL = ("fedlwf", "fedewc", "fot", "fedder")
FEDERATED = ("local", "fedavg", "fedproto")
KEEP_SAMPLES = ("fedder",)
FEW = ("fedlwf", "fedewc", "fedder")
MIXED = ("local", "fedproto")  # of the baselines those that know different networks
TUNING = ("full", "fedlora")
TUNING_CIFAR = ("full", "full_fedewc", "fedlora")
PERSONAL = ("local", "fedavg", "fedavg_ft", "disentafl")
DEVICES = ("naive", "lwf", "averaging", "dmc")
RETAINED = {"metric": "general_retention", "name": "retention", "ratio": 1.12}
MULTI_HEAD = "multi-head.final_average_accuracy"
HELP = (
    "large_small has a foundation model and public samples, which the others have not; fedder keeps clients' samples, "
    "which the others do not"
)
OWN = {"metric": "personalisation_mean", "name": "own data"}  # of what each client uses, on its own test data
REDRAW = {"metric": "task.redraw.mse", "name": "MSE", "lower": True, "factor": 1, "digits": 3}


def without_samples(*methods: str) -> tuple[str, ...]:
    return tuple(method for method in methods if method not in KEEP_SAMPLES)


def above(stream: str, method: str, others: Iterable[str], **how: object) -> tuple[Check, ...]:
    return tuple(Above(stream, method, other, **how) for other in others)


def digits(tested: str, *checks: Check, note: str = "") -> Place:
    return Place("digits", "", tested, checks, note)


def cifar(tested: str, *checks: Check, note: str = "", variant: str = "") -> tuple[Place, Place]:
    """Reduced to what a CPU does, and at the papers' scale."""
    name = f"CIFAR-100{variant}"
    small = Place(f"{name}, reduced", "paper", tested, tuple(map(reduced, checks)), note)
    return small, Place(name, "paper", tested, checks, note)


def reduced(check: Check) -> Check:
    if isinstance(check, Falls):
        return replace(check, streams=tuple(f"{stream}-reduced" for stream in check.streams))
    return replace(check, stream=f"{check.stream}-reduced")


CLAIMS = (
    Claim(
        "large_small",
        "superior",
        "better than the methods of federated continual learning",
        (
            digits(
                "accuracy of what each client uses, on its own test data, against four continual methods, three others",
                *above("digits", "large_small", (*FCL, *FEDERATED), **OWN),
                note=HELP,
            ),
            *cifar(
                "the same against three continual methods, three others",
                *above("cifar100-large-small", "large_small", (*FEW, *FEDERATED), **OWN),
            ),
        ),
    ),
    Claim(
        "large_small",
        "a fifth better",
        "improvements of 20 % and more",
        (
            digits(
                "1.2 times the same of each of these that keeps no samples",
                *above("digits", "large_small", without_samples(*FCL, *FEDERATED), ratio=1.2, **OWN),
            ),
            *cifar(
                "1.2 times the same of each of these that keeps no samples",
                *above("cifar100-large-small", "large_small", without_samples(*FEW, *FEDERATED), ratio=1.2, **OWN),
            ),
        ),
    ),
    Claim(
        "large_small",
        "heterogeneous",
        "also with heterogeneous small models",
        (
            digits("three different networks", *above("digits-mixed", "large_small", MIXED, **OWN)),
            *cifar("five different networks", *above("cifar100-mixed", "large_small", MIXED, **OWN)),
        ),
    ),
    Claim(
        "fedbe",
        "retention",
        "12 to 74 % higher accuracy retention on general tasks",
        (
            digits(
                "1.12 times the general retention of full fine-tuning and of LoRA; K = 3",
                *above("digits-tuning", "fedbe", TUNING, **RETAINED),
            ),
            digits_one := Place(
                "digits, one block",
                "",
                "the same with K = 1",
                above("digits-tuning", "fedbe-one-block", TUNING, **RETAINED),
                "K = 1 is our variant: there is nothing to allocate",
            ),
            *cifar(
                "1.12 times the general retention of full fine-tuning, of EWC and of LoRA; K = 3",
                *above("cifar100-tuning", "fedbe", TUNING_CIFAR, **RETAINED),
            ),
            *cifar(
                digits_one.tested,
                *above("cifar100-tuning", "fedbe-one-block", TUNING_CIFAR, **RETAINED),
                note=digits_one.note,
                variant=", one block",
            ),
        ),
    ),
    Claim(
        "fedbe",
        "convergence",
        "convergence 1.9 to 3.1 times faster",
        (
            digits(
                "simulated time to 95 % of what both reach, against full fine-tuning and LoRA",
                *(Sooner("digits-tuning-single", "fedbe", other, 1.9) for other in TUNING),
            ),
            *cifar(
                "simulated time to 95 % of what both reach, task by task, against full fine-tuning and LoRA",
                *(Sooner("cifar100-tuning", "fedbe", other, 1.9) for other in TUNING),
            ),
        ),
    ),
    Claim(
        "fedbe",
        "downstream",
        "downstream accuracy not degraded",
        (
            digits(
                "final average accuracy at most one point below full fine-tuning's and LoRA's",
                *above("digits-tuning", "fedbe", ("full", "fedlora"), by=-0.01),
            ),
            *cifar(
                "final average accuracy at most one point below full fine-tuning's and LoRA's",
                *above("cifar100-tuning", "fedbe", ("full", "fedlora"), by=-0.01),
            ),
        ),
    ),
    Claim(
        "tap",
        "personalised",
        "better personalised results than its baselines over data sets and tasks",
        (
            digits(
                "accuracy of personal models over clients and tasks, and error of redrawn images",
                *above("digits-tasks-small", "tap", PERSONAL, **OWN),
                *above("digits-tasks-small", "tap", PERSONAL, **REDRAW),
                note="18 rounds on at most 250 samples a task; after 60 rounds on all of them fedavg_ft is level or "
                "better (docs/methods/tap.md)",
            ),
            Place(
                "digits, last replacement",
                "",
                "the same with methods.tap.last_replacement",
                (
                    *above("digits-tasks-small", "tap-last-replacement", PERSONAL, **OWN),
                    *above("digits-tasks-small", "tap-last-replacement", PERSONAL, **REDRAW),
                ),
                "the last replacement is ours",
            ),
            *cifar(
                "accuracy of personal models over clients and tasks, CIFAR-100 and AG News",
                *above("cifar100-tasks", "tap", ("local", "fedavg", "fedavg_ft"), **OWN),
            ),
        ),
    ),
    Claim(
        "tap",
        "pairs",
        "the server model's ability to serve all tasks falls as modality-task pairs grow",
        (
            digits(
                "accuracy of the server's model in two tasks, with two, four and six pairs",
                *(
                    Falls(
                        tuple(f"digits-pairs-{count}" for count in (2, 4, 6)), "fedavg", f"task.{task}.accuracy", task
                    )
                    for task in ("digit", "value")
                ),
            ),
            *cifar(
                "accuracy of the server's model in two tasks, with two and seven pairs",
                *(
                    Falls(("cifar100-pairs-2", "cifar100-pairs-7"), "fedavg", f"task.{task}.accuracy", task)
                    for task in ("fine", "coarse")
                ),
            ),
        ),
    ),
    Claim(
        "dac",
        "transfer",
        "forward transfer between self-centred devices",
        (
            digits(
                "accuracy while an expert learns, started from the consolidated model less started from scratch",
                Beyond("digits-devices", "dac", "transfer_area"),
                note="two digits are learnt at once from anywhere",
            ),
            *cifar(
                "accuracy while an expert learns, started from the consolidated model less started from scratch",
                Beyond("cifar100-devices", "dac", "transfer_area"),
            ),
        ),
    ),
    Claim(
        "dac",
        "state of the art",
        "state of the art on Split CIFAR-100, CORe50 and Split TinyImageNet",
        (
            digits(
                "final average accuracy against sequential training, LwF, averaging and double distillation",
                *above("digits-devices", "dac", DEVICES),
            ),
            *cifar(
                "multi-head accuracy against the same, with the public split as data",
                *above("cifar100-devices", "dac", DEVICES, metric=MULTI_HEAD, name="multi-head"),
            ),
            Place("CORe50, TinyImageNet", "", "", note="neither can be downloaded where this was measured"),
        ),
    ),
    Claim(
        "dac",
        "one picture",
        "one out-of-distribution image suffices as the only data",
        (
            digits(
                "final average accuracy: with china.jpg above naive, at most 5 points below the public split",
                Above("digits-devices", "dac-picture", "naive"),
                Above("digits-devices", "dac-picture", "dac", by=-0.05),
            ),
            *cifar(
                "multi-head accuracy: with china.jpg above naive, at most 5 points below the public split",
                Above("cifar100-devices", "dac-picture", "naive", metric=MULTI_HEAD, name="multi-head"),
                Above("cifar100-devices", "dac-picture", "dac", metric=MULTI_HEAD, name="multi-head", by=-0.05),
            ),
        ),
    ),
)
