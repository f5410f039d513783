"""The clients' devices, simulated: how fast each is and how much it can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator

from randomness import generator
from validation import Section

Share = Annotated[float, Field(gt=0)]


class DeviceParameters(Section):
    """The section `devices` of params.yaml."""

    speeds: tuple[Share, ...] = Field(
        (1.0, 0.5, 0.25), min_length=1, description="kinds of devices by speed, in equal shares; 1 is the fastest"
    )
    jitter: float = Field(0.2, ge=0, lt=1, description="a device's speed is its kind's times 1 - jitter to 1 + jitter")
    memory: tuple[Share, ...] = Field(
        (1.0,), min_length=1, description="memory of each kind, as a share of what training all blocks needs"
    )

    @model_validator(mode="after")
    def _of_each_kind(self) -> DeviceParameters:
        if len(self.memory) not in (1, len(self.speeds)):
            raise ValueError(f"memory must have one number, or one for each of the {len(self.speeds)} speeds")
        return self


@dataclass(frozen=True)
class Device:
    speed: float  # of a device of speed 1
    memory: float  # share of what training all blocks needs


def devices(parameters: DeviceParameters, clients: int, seed: int) -> tuple[Device, ...]:
    """Every client's device: the kinds in equal shares, dealt out by lot, the speeds jittered evenly. [ours]"""
    draw = generator(seed, "devices")
    kinds, jitter = torch.randperm(clients, generator=draw).tolist(), torch.rand(clients, generator=draw)
    factors = (1 + parameters.jitter * (2 * jitter - 1)).tolist()
    return tuple(
        Device(
            parameters.speeds[kind % len(parameters.speeds)] * factor, parameters.memory[kind % len(parameters.memory)]
        )
        for kind, factor in zip(kinds, factors, strict=True)
    )
