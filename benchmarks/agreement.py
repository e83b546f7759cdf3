"""How far the packed engine's vectors are from transformers' BertModel in float32.

python benchmarks/agreement.py --data DIR
"""

from __future__ import annotations

import numpy as np
from _competitors import precisions_here
from _data import options_parser, read, write_figures
from _reference import load_reference, pooled_vectors

from skminilm import MiniLMEncoder


def main():
    """Print one line a precision."""
    parser = options_parser(__doc__)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = read(options.data, "sib200").sample(options.texts, random_state=0)
    texts = rows.text.tolist()
    expected = pooled_vectors(load_reference(), texts)
    print(f"{len(texts)} texts in {rows.lang.nunique()} languages, mean pooling, no prompt, not normalised")
    figures: dict = {}
    precisions = list(precisions_here()) if options.device == "cpu" else ["fp32", "bf16"]
    for precision in precisions:
        encoder = MiniLMEncoder(
            precision=precision, device=options.device, prompt=None, normalize=False, cache=None
        )
        found = encoder.transform(texts)
        shuffled = np.random.default_rng(0).permutation(len(texts))
        again = encoder.set_params(batch_tokens=512).transform([texts[i] for i in shuffled])
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        figures[precision] = {
            "largest_difference": np.abs(found - expected).max(),
            "min_cosine": cosine.min(),
        }
        print(
            f"{precision}: largest difference {np.abs(found - expected).max():.2e}, least cosine "
            f"{cosine.min():.6f}; in other batches and order {np.abs(again - found[shuffled]).max():.2e}"
        )
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
