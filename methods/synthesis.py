"""Images made from a trained network alone: a generator is trained until the network sees its classes in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models import Classifier, initialise
from models.generator import ImageGenerator
from validation import Section

from .augmentation import Augmentation
from .training import distillation, to_float

BETAS = (0.5, 0.999)  # of Adam, for generators [field]


class Synthesis(Section):
    """How the images are made. `rounds` times `batch` of them in all."""

    rounds: int = Field(10, ge=1, description="synthesis rounds, each adds a batch of images")
    batch: int = Field(200, ge=2, description="images made in a synthesis round")
    steps: int = Field(10, ge=1, description="steps of the generator in a synthesis round")
    learning_rate: float = Field(0.002, gt=0, description="step size of the generator's Adam")
    noise_rate: float = Field(0.01, gt=0, description="step size of the Adam that moves a round's noise vectors")
    noise: int = Field(256, ge=1, description="length of a noise vector")
    width: int = Field(16, ge=1, description="channels of the generator's last maps; twice as many before")
    cross_entropy: float = Field(0.5, ge=0, description="weight of the teacher's cross-entropy on the drawn labels")
    statistics: float = Field(10.0, ge=0, description="weight of the matching of BatchNorm statistics")
    boundary: float = Field(1.0, ge=0, description="weight of the disagreement of teacher and student")
    warmup: int = Field(1, ge=0, description="synthesis rounds without the disagreement")
    student_steps: int = Field(20, ge=1, description="steps of the student after each synthesis round")
    student_batch: int = Field(64, ge=2, description="images in a step of the student")
    student_rate: float = Field(0.02, gt=0, description="step size of the student's SGD with momentum 0.9")
    student_temperature: float = Field(20.0, gt=0, description="tau of the student's distillation")


@dataclass(frozen=True)
class Synthetic:
    """Images of `rounds` synthesis rounds, in the order in which they were made.

    Attributes:
        images: (rounds * batch, channels, height, width), uint8.
        labels: (rounds * batch,), the classes that were drawn for them, int64.
        losses: of each round the generator's losses, one a step.
        student: the network that learned from these images alone.
    """

    images: Tensor
    labels: Tensor
    losses: list[list[float]]
    student: nn.Module


class Statistics:
    """The inputs of a network's BatchNorm layers in its last forward pass, against their running statistics.

        R = sum over layers ( || mean - running mean ||_2 + || variance - running variance ||_2 )

    Yin et al., CVPR 2020 (DeepInversion). 0 for a network without BatchNorm.
    """

    def __init__(self, network: nn.Module) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(lambda layer, inputs: self.inputs.update({layer: inputs[0].float()}))

    def distance(self) -> Tensor | float:
        total = 0.0
        for layer, maps in self.inputs.items():
            variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
            total = total + (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
        return total


def disagreement(student: Tensor, teacher: Tensor, classes: Sequence[int]) -> Tensor:
    """KL( p_teacher || p_student ) over `classes` of the images that both give to one class, mean over all images.

    Such an image lies inside the student's class; where it makes the two disagree most is near the teacher's boundary.

    Args:
        student, teacher: logits (batch, all classes); gradient flows to both, since both see the generator's images.
    """
    log_p, log_q = F.log_softmax(teacher[:, classes], dim=1), F.log_softmax(student[:, classes], dim=1)
    agree = log_p.argmax(dim=1) == log_q.argmax(dim=1)
    return (F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1) * agree).mean()


def synthesise(
    teacher: Classifier,
    student: Classifier,
    shape: tuple[int, int, int],
    classes: Sequence[int],
    parameters: Synthesis,
    augmentation: Augmentation,
    draw: torch.Generator,
) -> Synthetic:
    """Images that `teacher` gives to the classes drawn for them.

        L_G = a CE( teacher(x), y ) + b R(x) - c KL( teacher(x) || student(x) )      x = G(z), y drawn evenly

    In each synthesis round noise z and labels y are drawn, generator and noise take `steps` steps of Adam, and the
    batch with the lowest loss joins the others; then the student takes its steps on all images so far,
    min KL( teacher || student ). Both networks see the images augmented as in training. Zhang et al., ICCV 2023, after
    their code. In the code each round starts from a copy of the generator whose gradients a second optimizer gathers
    for the next; here the generator just goes on. [ours: simpler] BatchNorm's statistics are those of the batch alone.

    Args:
        teacher, student: on one device; the teacher's parameters stay as they are, the student is trained in place.
        shape: of an image: channels, height, width.
        classes: those that the teacher has learned.
        draw: on the CPU.
    """
    device = next(teacher.parameters()).device
    with torch.device("meta"):
        structure = ImageGenerator(shape, parameters.noise, parameters.width)
    generator = initialise(structure, draw).to(device).train()
    teacher, statistics = teacher.eval().requires_grad_(False), Statistics(teacher)
    known = torch.tensor(classes, device=device)
    adam = torch.optim.Adam(generator.parameters(), parameters.learning_rate, betas=BETAS)
    sgd = torch.optim.SGD(student.parameters(), parameters.student_rate, momentum=0.9, weight_decay=1e-4)

    def make(noise: Tensor, targets: Tensor, bounded: bool) -> tuple[Tensor, Tensor]:
        """Images, and the generator's loss on them."""
        images = generator(noise)
        seen = augmentation.apply(images, draw)
        logits = teacher(seen)
        loss = parameters.cross_entropy * F.cross_entropy(logits[:, known], targets)
        loss = loss + parameters.statistics * statistics.distance()
        if bounded:
            loss = loss - parameters.boundary * disagreement(student(seen), logits, classes)
        return images, loss

    def teach(images: Tensor) -> None:
        """The student's steps on `images`, (any number, ...) uint8."""
        student.train()
        for _ in range(parameters.student_steps):
            rows = torch.randperm(len(images), generator=draw)[: parameters.student_batch].to(device)
            inputs = augmentation.apply(to_float(images[rows]), draw)
            with torch.no_grad():
                wanted = teacher(inputs)
            sgd.zero_grad()
            distillation(student(inputs), wanted, classes, parameters.student_temperature).backward()
            sgd.step()
        student.eval()

    made, labels, losses = [], [], []
    for number in range(parameters.rounds):
        noise = torch.randn(parameters.batch, parameters.noise, generator=draw).to(device).requires_grad_()
        targets = torch.randint(len(classes), (parameters.batch,), generator=draw).to(device)
        adam_of_noise = torch.optim.Adam([noise], parameters.noise_rate, betas=BETAS)
        best, course = None, []
        for _ in range(parameters.steps):
            images, loss = make(noise, targets, bounded=number >= parameters.warmup and parameters.boundary > 0)
            course.append(loss.item())
            if course[-1] == min(course):
                best = images.detach()
            adam.zero_grad()
            adam_of_noise.zero_grad()
            loss.backward()
            adam.step()
            adam_of_noise.step()
        made.append(best.add(1).mul(127.5).round().to(torch.uint8))
        labels.append(known[targets])
        losses.append(course)
        teach(torch.cat(made))
    return Synthetic(torch.cat(made).cpu(), torch.cat(labels).cpu(), losses, student)
