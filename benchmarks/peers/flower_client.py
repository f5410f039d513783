"""Flower's client, in a module of its own: its Ray actors import it."""

from functools import cache

import job
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@cache
def opened() -> tuple[list, torch.nn.Module]:
    """The data and a network, once per actor."""
    torch.set_num_threads(1)
    return job.clients(), job.network()


@app.train()
def train(message: Message, context: Context) -> Message:
    data, model = opened()
    images, labels = data[context.node_config["partition-id"]]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=job.LEARNING_RATE)
    for rows in torch.randperm(job.SAMPLES).split(job.BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    said = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": job.SAMPLES})}
    return Message(content=RecordDict(said), reply_to=message)
