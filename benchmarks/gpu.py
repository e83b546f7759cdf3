"""Speed on a GPU, end to end from Python strings and of the model alone, and what bounds it.

python benchmarks/gpu.py --data DIR

--host   how fast this machine could feed a GPU; needs none
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from _competitors import median_ratio, time_interleaved
from _data import options_parser, read, write_figures
from _reference import load_sentence_transformer, write_reference
from encode import FLOP_A_TOKEN, tokens_of

from skminilm import MiniLMEncoder
from skminilm.checkpoints import load_checkpoint
from skminilm.engine import Compute, get_model
from skminilm.engine.packed_model import CUDA_BATCH_TOKENS, PackedModel
from skminilm.engine.packing import plan_packs

BATCH_SIZES = (128, 256, 512, 1024, 2048, 4096)


def best_seconds(call, rounds: int = 5) -> float:
    """Return how long a call takes at the least."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def host_alone(texts: list[str], device: str) -> dict:
    """Return tokens/s of the tokenizer, and of all of `transform` but the network: the most that a GPU can get."""

    def start(self, batch, rows, pooling, normalize):
        self.make_pack(batch, rows)
        vectors = np.zeros((len(rows), self.hidden_size), np.float32)
        return lambda: vectors

    tokenizer = load_checkpoint("bundled").tokenizer
    options = dict(prompt=None, cache=None, batch_tokens=CUDA_BATCH_TOKENS, device=device)
    # In bfloat16 attention takes texts of any lengths on a CPU too, so that packs are made alike.
    encoder = MiniLMEncoder(precision="bf16", **options)
    n_tokens = tokens_of(texts)
    with patch.object(PackedModel, "start", start):
        encoder.transform(texts)
        seconds = best_seconds(lambda: encoder.transform(texts))
    alone = best_seconds(lambda: tokenizer.encode(texts, max_length=512))
    figures = {"host_tokens_per_s": n_tokens / seconds, "tokenizer_tokens_per_s": n_tokens / alone}
    print(
        f"the host alone, {len(texts):,} texts: {n_tokens / seconds:,.0f} tokens/s; its tokenizer: "
        f"{n_tokens / alone:,.0f}"
    )
    return figures


def matrix_peak(dtype: torch.dtype) -> float:
    """Return the FLOP/s of large square products."""
    a = torch.randn(8192, 8192, device="cuda").to(dtype)

    def multiply():
        a @ a
        torch.cuda.synchronize()

    multiply()
    return 2 * 8192**3 / best_seconds(multiply, 10)


def model_alone(texts: list[str], precision: str, batch_tokens: int) -> float:
    """Return tokens/s of the forward pass over packs that lie ready on the GPU."""
    checkpoint = load_checkpoint("bundled")
    model = get_model(checkpoint, Compute(torch.device("cuda", 0), precision))
    batch = checkpoint.tokenizer.encode(texts, max_length=512)
    packs = [model.make_pack(batch, rows) for rows in plan_packs(batch.lengths, batch_tokens)]
    if packs[0].groups is not None:
        print(f"{precision}: attention takes groups of like length here, not all texts in one call")

    def run():
        for pack in packs:
            model.hidden_states(pack)
        torch.cuda.synchronize()

    with torch.inference_mode():
        run()
        return int(batch.lengths.sum()) / best_seconds(run)


class Utilization:
    """Samples the GPU's utilisation while a block runs, where the driver tells it."""

    def __enter__(self):
        """Begin to sample."""
        self._samples: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        while not self._done.wait(0.02):
            try:
                self._samples.append(torch.cuda.utilization())
            except Exception:  # the driver's library is not there
                return

    def __exit__(self, *_):
        """Stop."""
        self._done.set()
        self._thread.join()

    def __str__(self):
        """Return the mean."""
        return f"{statistics.mean(self._samples):.0f} %" if self._samples else "unknown"


def main():
    """Print a table of ratios, then the bounds."""
    parser = options_parser(__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--host", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.host:
        raise SystemExit("No CUDA device: this benchmark needs one, but for --host.")
    different = read(options.data, "sib200").text.drop_duplicates()  # of texts that repeat, we compute one
    texts = different.sample(min(options.texts, len(different)), random_state=0).tolist()
    if options.host:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_figures(options.json, host_alone(texts, device))
        return
    n_tokens = tokens_of(texts)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {len(texts)} texts, {n_tokens:,} tokens"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_reference(Path(temporary))
        plain = load_sentence_transformer(folder, "cuda")
        half = load_sentence_transformer(folder, "cuda").bfloat16()
        expected = plain.encode(texts[:2000])
        runs = {"sentence-transformers defaults": lambda: plain.encode(texts)}
        for size in BATCH_SIZES:
            runs[f"sentence-transformers bf16, batch {size}"] = lambda s=size: half.encode(
                texts, batch_size=s
            )
        encoders = {
            precision: MiniLMEncoder(precision=precision, device="cuda", prompt=None, cache=None)
            for precision in ("fp32", "bf16", "fp16")
        }
        for precision, encoder in encoders.items():
            runs[f"skminilm {precision}"] = lambda e=encoder: e.transform(texts)
        for encode in runs.values():
            encode()
        seconds = time_interleaved(runs, options.rounds)
    best_peer = min(
        (name for name in runs if "bf16, batch" in name), key=lambda n: statistics.median(seconds[n])
    )
    figures: dict = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "n_tokens": n_tokens,
        "rows": [],
        "cosines": {},
    }
    for name in runs:
        rate = n_tokens / statistics.median(seconds[name])
        to_defaults = median_ratio(seconds["sentence-transformers defaults"], seconds[name])
        to_best = median_ratio(seconds[best_peer], seconds[name])
        print(f"{name:40}{rate:>12,.0f} tokens/s{to_defaults:>8.1f} x defaults{to_best:>8.1f} x best bf16")
        figures["rows"].append(
            {"name": name, "tokens_per_s": rate, "x_defaults": to_defaults, "x_best": to_best}
        )
    for precision, encoder in encoders.items():
        found = encoder.transform(texts[:2000])
        cosine = figures["cosines"][precision] = float((found * expected).sum(1).min())
        print(f"{precision}: least cosine to the reference {cosine:.6f}")
    peak = matrix_peak(torch.bfloat16)
    alone = {size: model_alone(texts, "bf16", size) for size in (16_384, 65_536, 262_144)}
    with Utilization() as utilization:
        for _ in range(5):
            encoders["bf16"].transform(texts)
    figures |= host_alone(texts, "cuda")
    for size, rate in alone.items():
        share = rate * FLOP_A_TOKEN / peak
        print(f"model alone, packs of {size:,} tokens: {rate:,.0f} tokens/s, {share:.0%} of the matrix peak")
    print(f"matrix peak {peak / 1e12:,.0f} TFLOP/s; utilisation {utilization}")
    figures |= {"alone": alone, "matrix_flop_per_s": peak, "utilisation": str(utilization)}
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
