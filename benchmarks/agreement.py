"""How far the packed engine's vectors are from transformers' BertModel in float32.

python benchmarks/agreement.py --data DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _data import read
from _reference import load_reference, pooled_vectors

from skminilm import MiniLMEncoder


def main():
    """Print one line a precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the TSV files")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = read(options.data, "sib200").sample(options.texts, random_state=0)
    texts = rows.text.tolist()
    expected = pooled_vectors(load_reference(), texts)
    print(f"{len(texts)} texts in {rows.lang.nunique()} languages, mean pooling, no prompt, not normalised")
    for precision in ("fp32", "bf16"):
        encoder = MiniLMEncoder(
            precision=precision, device=options.device, prompt=None, normalize=False, cache=None
        )
        found = encoder.transform(texts)
        shuffled = np.random.default_rng(0).permutation(len(texts))
        again = encoder.set_params(batch_tokens=512).transform([texts[i] for i in shuffled])
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        print(
            f"{precision}: largest difference {np.abs(found - expected).max():.2e}, least cosine "
            f"{cosine.min():.6f}; in other batches and order {np.abs(again - found[shuffled]).max():.2e}"
        )


if __name__ == "__main__":
    main()
