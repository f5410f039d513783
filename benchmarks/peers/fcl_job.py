"""This project, through the command line's own flow with everything on.

Prefect tasks on a temporary server, uploads written, hashed, read back and checked, a checkpoint after every round, the
journal, MLflow's tracking process. The images come from a Parquet file of PNGs whose column `client` says whose they
are.
"""

import io
import tempfile
import time
from pathlib import Path

import job
import torch

from flows import settings

settings.apply()

import pandas as pd  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from flows.conduct import play  # noqa: E402
from parameters import experiment  # noqa: E402
from tasks.run import Run  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402

PARAMETERS = f"""
streams:
  peers: {{source: "parquet:images", image: image, label: label, client: client, classes: {job.CLASSES},
          scenario: class-incremental, clients: {job.CLIENTS}, experiences: 1, order: shared,
          partition: {{kind: natural}}, public: 0.0, seed: 0}}
model: {{name: cnn, width: {job.WIDTH}}}
train: {{rounds: 1, local_epochs: 1, batch_size: {job.BATCH}, optimizer: sgd, learning_rate: {job.LEARNING_RATE},
        clients_per_round: {job.PER_ROUND}}}
methods: {{fedavg: {{}}}}
run: {{}}
"""


def write_images(folder: Path) -> None:
    """The clients' images for training, and the first client's again as test split, which every stream must have."""
    rows = []
    for client, (images, labels) in enumerate(zip(*job.pixels(), strict=True)):
        for image, label in zip(images, labels, strict=True):
            file = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG", compress_level=1)
            rows.append({"image": file.getvalue(), "label": label, "client": client})
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "train.parquet")
    table[table.client == 0].to_parquet(folder / "test.parquet")


def main() -> None:
    options = job.arguments(runner={"choices": ["threads", "processes"], "default": "processes"})
    clock = job.Clock(f"fcl, {options.runner}", "this checkout", options.workers)

    def moved_on(done: int, total: int, what: str) -> None:
        if 1 < done <= options.rounds + 1:  # before the first round and after the last one everything is evaluated
            clock.round_done()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        write_images(root / "images")
        (root / "params.yaml").write_text(PARAMETERS)
        chosen = {"runner": options.runner, "workers": options.workers}
        spec = experiment("fedavg", "peers", 0, [f"train.rounds={options.rounds}"], root, **chosen)
        with Tracker() as tracker, Run(spec, root, root / "out", on_progress=moved_on) as run:
            play(run, tracker)
            if run.notes:
                raise RuntimeError("not everything was on: " + "; ".join(run.notes))
        (final,) = (root / "out" / "models").glob("*.safetensors")
        model = job.network()
        model.load_state_dict(load_file(final))
        clock.report(model, options.rounds)
        wait_for(root)


def wait_for(root: Path, seconds: float = 60) -> None:
    """MLflow's process sends figures and the model when the run has ended; the folder goes when it has."""
    deadline = time.monotonic() + seconds
    while any((root / "runs" / "untracked").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
