"""FedLab: its standalone pipeline, which trains the clients one after the other; uploads are copied in memory."""

from importlib.metadata import version

import job
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline
from torch.utils.data import DataLoader, TensorDataset


class Data:
    """FedLab's data sets give a DataLoader."""

    def __init__(self) -> None:
        self.clients = [TensorDataset(*data) for data in job.clients()]

    def get_dataloader(self, client: int, batch_size: int) -> DataLoader:
        return DataLoader(self.clients[client], batch_size=batch_size, shuffle=True)


class Pipeline(StandalonePipeline):
    """`evaluate` is called at the end of every round."""

    def __init__(self, handler, trainer, clock: job.Clock) -> None:
        super().__init__(handler, trainer)
        self.clock = clock

    def evaluate(self) -> None:
        self.clock.round_done()


def main() -> None:
    options = job.arguments()
    handler = FedAvgServerHandler(job.network(), options.rounds, job.PER_ROUND / job.CLIENTS)
    trainer = FedAvgSerialClientTrainer(job.network(), job.CLIENTS)
    trainer.setup_dataset(Data())
    trainer.setup_optim(1, job.BATCH, job.LEARNING_RATE)
    clock = job.Clock("fedlab", version("fedlab"), 1)
    Pipeline(handler, trainer, clock).main()
    clock.report(handler.model, options.rounds)


if __name__ == "__main__":
    main()
