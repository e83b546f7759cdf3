"""Peak memory, cold start and a soak, each in a process of its own.

python benchmarks/memory.py --data DIR                      peak memory and cold start beside the reference
python benchmarks/memory.py --data DIR --soak 200000        resident memory while texts stream through transform
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _competitors import machine, precisions_here
from _data import options_parser, read, write_figures
from _reference import write_reference

PROGRAMS = {
    "sentence-transformers fp32": """
from sentence_transformers import SentenceTransformer
encode = SentenceTransformer({folder!r}, device="cpu", local_files_only=True).encode
""",
    "skminilm fp32": """
from skminilm import MiniLMEncoder
encode = MiniLMEncoder(precision="fp32", prompt=None).transform
""",
    "skminilm auto": """
from skminilm import MiniLMEncoder
encode = MiniLMEncoder(prompt=None).transform
""",
    "skminilm int8": """
from skminilm import MiniLMEncoder
encode = MiniLMEncoder(precision="int8", prompt=None).transform
""",
    "skminilm openvino bf16": """
from skminilm import MiniLMEncoder
encode = MiniLMEncoder(precision="bf16", backend="openvino", prompt=None).transform
""",
    "skminilm openvino int8": """
from skminilm import MiniLMEncoder
encode = MiniLMEncoder(precision="int8", backend="openvino", prompt=None).transform
""",
}
REFERENCE = next(iter(PROGRAMS))
NEEDS = {"skminilm int8": "int8", "skminilm openvino bf16": "bf16"}  # precisions of the processor
PEAK = """
import json
encode(json.load(open({texts!r})))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
IMPORTS = {
    "sklearn.base": "import sklearn.base",
    "skminilm": "import sklearn.base, skminilm",
}


def run(program: str) -> tuple[float, str]:
    """Run a program in a new process; return its seconds and the last line that it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    return seconds, done.stdout.strip().rsplit("\n", 1)[-1]


def compare(folder: Path, texts: list[str], rounds: int, names: list[str]) -> dict:
    """Print peak memory of encoding all texts, and time from start to the first vector."""
    texts_file = folder / "texts.json"
    texts_file.write_text(json.dumps(texts))
    peaks: dict[str, list[float]] = {name: [] for name in names}
    starts: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            setup = PROGRAMS[name].format(folder=str(folder))
            peaks[name].append(int(run(setup + PEAK.format(texts=str(texts_file)))[1]) / 1024)
            starts[name].append(run(setup + "encode(['first'])\nprint()")[0])
    figures = {}
    print(f"{'':30}{'peak MiB':>10}{'ratio':>8}{'cold start s':>14}{'ratio':>8}")
    for name in names:
        peak, start = statistics.median(peaks[name]), statistics.median(starts[name])
        peak_ratio = statistics.median(a / b for a, b in zip(peaks[name], peaks[REFERENCE], strict=True))
        start_ratio = statistics.median(a / b for a, b in zip(starts[name], starts[REFERENCE], strict=True))
        print(f"{name:30}{peak:>10,.0f}{peak_ratio:>8.2f}{start:>14.2f}{start_ratio:>8.2f}", flush=True)
        figures[name] = {
            "peak_mib": peak,
            "peak_ratio": peak_ratio,
            "cold_start_s": start,
            "cold_start_ratio": start_ratio,
        }
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(5 * rounds):
        for name, program in IMPORTS.items():
            imports[name].append(run(program)[0])
    added = statistics.median(
        b - a for a, b in zip(imports["sklearn.base"], imports["skminilm"], strict=True)
    )
    torch_loaded = run("import sys, skminilm; print('torch' in sys.modules)")[1]
    print(
        f"import skminilm adds {1000 * added:.0f} ms to import sklearn.base; it imports torch: {torch_loaded}"
    )
    return {**figures, "import_added_s": added}


def resident_mib() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(texts: list[str], total: int, precision: str, backend: str) -> dict:
    """Stream texts through transform, every tenth chunk with long unspaced strings, and watch the memory."""
    from skminilm import MiniLMEncoder

    # Without the cache, which would fill up to its bound meanwhile.
    encoder = MiniLMEncoder(precision=precision, backend=backend, long_text="chunk_mean", cache=None)
    chunk, done, trace = 1000, 0, []
    start = time.perf_counter()
    while done < total:
        some = [f"{texts[(done + i) % len(texts)]} {done + i}" for i in range(chunk)]
        if (done // chunk) % 10 == 5:
            some[0], some[1] = "x" * 20_000, "ไม่มีช่องว่าง" * 1000
        encoder.transform(some)
        done += chunk
        gc.collect()
        trace.append(resident_mib())
        if len(trace) % max(1, total // chunk // 20) == 0:
            rate = done / (time.perf_counter() - start)
            print(f"{done:>9,} texts  {trace[-1]:>8,.0f} MiB  {rate:,.0f} texts/s", flush=True)
    after = trace[len(trace) // 10 :]
    growth = max(after) / after[0] - 1
    print(f"largest after the first tenth: {growth:+.1%} of the size there")
    return {"trace_mib": trace, "growth": growth}


def main():
    """Print tables."""
    parser = options_parser(__doc__, reference=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="programs, by how their names begin")
    parser.add_argument("--soak", type=int, help="stream so many texts instead")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backend", default="torch")
    options = parser.parse_args()
    data = read(options.data, "sib200")
    print(machine())
    figures: dict = {"machine": machine()}
    if options.soak:
        figures["soak"] = soak(data.text.tolist(), options.soak, options.precision, options.backend)
    else:
        texts = data[data.split == "test"].sample(1000, random_state=0).text.tolist()
        only = tuple(options.only or [""])
        names = [name for name in PROGRAMS if name == REFERENCE or name.startswith(only)]
        for name, precision in NEEDS.items():
            if name in names and precision not in precisions_here():
                print(f"{name}: left out, {precision} not here")
                names.remove(name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_reference(options.reference or Path(temporary))
            figures["processes"] = compare(folder, texts, options.rounds, names)
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
