"""What it costs to decode a source: seconds, CPU seconds, and memory above what the imports take.

python benchmarks/sources.py SOURCE [KEY=VALUE ...]
python benchmarks/sources.py parquet:../shared/data/cifar100 label=fine_label
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from streams.parameters import StreamParameters  # noqa: E402
from streams.sources import load  # noqa: E402


def peak() -> float:
    """The largest memory of this process so far, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(source: str, *options: str) -> None:
    kind, colon, path = source.partition(":")
    if kind not in ("digits", "torchvision"):
        source = f"{kind}{colon}{Path(path).resolve()}"
    chosen = {key: yaml.safe_load(value) for key, value in (option.split("=", 1) for option in options)}
    parameters = StreamParameters(source=source, clients=1, experiences=1, **chosen)
    with tempfile.TemporaryDirectory() as folder:
        imports, begin, computing = peak(), time.perf_counter(), time.process_time()
        shape = load(parameters, Path(folder)).inputs.shape
        decoded, computed, top = time.perf_counter() - begin, time.process_time() - computing, peak()
        begin = time.perf_counter()
        load(parameters, Path(folder))
        again = time.perf_counter() - begin
    print(f"{shape}: {decoded:.2f} s ({computed:.2f} s of CPU), opened again in {again:.2f} s")
    print(f"peak memory {top - imports:.0f} MiB above the imports' {imports:.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
