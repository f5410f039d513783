"""Flower: its simulation, where a message per client goes to a pool of Ray actors, one CPU each."""

from importlib.metadata import version

import flower_client
import job
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def main() -> None:
    options = job.arguments()
    clock = job.Clock("flower", version("flwr"), options.workers)
    app, model = ServerApp(), job.network()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        share = job.PER_ROUND / job.CLIENTS
        result = FedAvg(fraction_train=share, fraction_evaluate=0.0, min_available_nodes=job.CLIENTS).start(
            grid=grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=options.rounds,
            evaluate_fn=lambda number, arrays: clock.round_done() if number else None,
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": options.workers}}
    run_simulation(app, flower_client.app, num_supernodes=job.CLIENTS, backend_config=resources)
    clock.report(model, options.rounds)


if __name__ == "__main__":
    main()
