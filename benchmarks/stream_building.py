"""What building a stream costs: split CIFAR-100 for 5, 100 and 1,000 clients.

    python benchmarks/stream_building.py FOLDER [--clients 5 100 1000] [--repeats 3]

FOLDER holds train.parquet and test.parquet with the columns img and fine_label. Every build runs in a process of its
own, so that its peak memory is its own. Decoding is done once and cached; its line comes first. "deal": plan,
manifest and its check. "open": what every worker does. "lookup": all rows of all clients and experiences. Seconds are
medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

PARTITIONS = {
    "iid, shared order": {"partition": {"kind": "iid"}, "order": "shared"},
    "Dirichlet 0.5, own order": {"partition": {"kind": "dirichlet", "alpha": 0.5}, "order": "own"},
}


def measure(folder: str, root: str, clients: int, kind: str) -> dict[str, float]:
    """One build in this process: seconds, MiB and bytes on disk."""
    from streams.parameters import StreamParameters
    from streams.sources import load
    from streams.stream import build, open_stream

    place = Path(root)
    shutil.rmtree(place / "built/streams", ignore_errors=True)
    parameters = StreamParameters(
        source=f"parquet:{folder}", image="img", label="fine_label", clients=clients, experiences=10, **PARTITIONS[kind]
    )
    times = [time.perf_counter()]
    load(parameters, place)
    times.append(time.perf_counter())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build(f"s{clients}", parameters, place)
    times.append(time.perf_counter())
    stream = open_stream(f"s{clients}", place)
    times.append(time.perf_counter())
    rows = sum(len(stream.train(i, t)) for i in range(clients) for t in range(10))
    times.append(time.perf_counter())
    assert rows + len(stream.public()) == 50_000
    source, deal, opened, lookup = (end - start for start, end in pairwise(times))
    written = sum(path.stat().st_size for path in (place / "built/streams" / f"s{clients}").iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "source": source,
        "deal": deal,
        "open": opened,
        "lookup": lookup,
        "peak": peak / 1024,
        "before": before / 1024,
        "disk": written / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("ROOT", "CLIENTS", "KIND"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    folder = str(chosen.folder.resolve())
    if chosen.one:
        print(json.dumps(measure(folder, chosen.one[0], int(chosen.one[1]), chosen.one[2])))
        return
    with tempfile.TemporaryDirectory() as root:

        def run(clients: int, kind: str) -> dict[str, float]:
            command = [sys.executable, __file__, folder, "--one", root, str(clients), kind]
            return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        first = run(chosen.clients[0], next(iter(PARTITIONS)))
        print(f"decoding, once: {first['source']:.1f} s, peak memory {first['before']:.0f} MiB\n")
        print(
            "| clients | | source, cached (s) | deal and check (s) | open (s) | lookup (s) | peak (MiB) | disk (MiB) |"
        )
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for kind in PARTITIONS:
            for clients in chosen.clients:
                runs = [run(clients, kind) for _ in range(chosen.repeats)]
                middle = {name: statistics.median(each[name] for each in runs) for name in runs[0]}
                print(
                    f"| {clients:,} | {kind} | {middle['source']:.2f} | {middle['deal']:.2f} | {middle['open']:.2f} | "
                    f"{middle['lookup']:.3f} | {middle['peak']:.0f} | {middle['disk']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
