"""fluke: its FedAVG over a channel that copies every model; clients keep model and optimizer from round to round."""

from importlib.metadata import version

import job
import torch
from fluke import FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server
from fluke.utils import ServerObserver


class Rounds(ServerObserver):
    def __init__(self, clock: job.Clock) -> None:
        self.clock = clock

    def end_round(self, round: int) -> None:
        self.clock.round_done()


def main() -> None:
    options = job.arguments()
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_inmemory(True)
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    clients = [
        Client(
            index=number,
            train_set=FastDataLoader(*data, num_labels=job.CLASSES, batch_size=job.BATCH, shuffle=True),
            test_set=None,
            optimizer_cfg=OptimizerConfigurator({"name": torch.optim.SGD, "lr": job.LEARNING_RATE}),
            loss_fn=torch.nn.CrossEntropyLoss(),
            local_epochs=1,
        )
        for number, data in enumerate(job.clients())
    ]
    server = Server(job.network(), None, clients, weighted=True)
    federation = FedAVG(job.CLIENTS, None, {}, clients=clients, server=server)
    clock = job.Clock("fluke", version("fluke-fl"), 1)
    federation.server.attach(Rounds(clock))
    federation.attach(Rounds(clock))
    federation.run(options.rounds, job.PER_ROUND / job.CLIENTS, finalize=False)
    clock.report(server.model, options.rounds)


if __name__ == "__main__":
    main()
