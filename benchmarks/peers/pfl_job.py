"""pfl: its simulated backend with FederatedAveraging; several workers by torch.distributed.run (gloo).

It sums the clients' model differences in memory. Users come in turn (`minimize_reuse`), its batches are not shuffled.
"""

import types

import job
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.version import __version__


def loss(self, images, labels, eval=False):
    return F.cross_entropy(self(images), labels)


class Rounds(TrainingProcessCallback):
    def __init__(self, clock: job.Clock) -> None:
        self.clock = clock

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.clock.round_done()
        return False, Metrics()


def main() -> None:
    options = job.arguments()
    module = job.network()
    module.loss = types.MethodType(loss, module)
    module.metrics = lambda images, labels: {}
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    users = FederatedDataset.from_slices(
        dict(enumerate(job.clients())), get_user_sampler("minimize_reuse", range(job.CLIENTS))
    )
    workers = pytorch_ops.distributed.world_size
    clock = job.Clock("pfl", __version__, workers, launched=workers > 1)
    FederatedAveraging().run(
        backend=SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()]),
        model=model,
        algorithm_params=NNAlgorithmParams(options.rounds, options.rounds, job.PER_ROUND, None),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job.LEARNING_RATE, local_batch_size=job.BATCH
        ),
        callbacks=[Rounds(clock)],
    )
    if pytorch_ops.distributed.global_rank == 0:
        clock.report(module, options.rounds)


if __name__ == "__main__":
    main()
