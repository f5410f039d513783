"""FedAvg as one writes it by hand: one process, everything in memory, nothing written, nothing checked."""

import job
import torch
import torch.nn.functional as F


def main() -> None:
    options = job.arguments(
        **{"channels-last": {"action": "store_true", "help": "images laid out as fcl's network does"}}
    )
    data, model = job.clients(), job.network(options.channels_last)
    server = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clock = job.Clock("loop, channels-last" if options.channels_last else "loop", torch.__version__, 1)
    draw = torch.Generator().manual_seed(0)
    for _ in range(options.rounds):
        mean = {name: torch.zeros_like(tensor) for name, tensor in server.items()}
        for client in torch.randperm(job.CLIENTS, generator=draw)[: job.PER_ROUND].tolist():
            images, labels = data[client]
            model.load_state_dict(server)
            optimizer = torch.optim.SGD(model.parameters(), lr=job.LEARNING_RATE)
            for rows in torch.randperm(job.SAMPLES, generator=draw).split(job.BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                mean[name] += tensor / job.PER_ROUND
        server = mean
        clock.round_done()
    model.load_state_dict(server)
    clock.report(model, options.rounds)


if __name__ == "__main__":
    main()
