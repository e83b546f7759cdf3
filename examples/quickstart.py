"""Train on English, predict in 16 languages: the pipeline and the fine-tuned classifier.

python examples/quickstart.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from skminilm import MiniLMClassifier, MiniLMEncoder
from skminilm.datasets import load_support_requests

# The items are parallel: a request that is trained on in English is tested in no language.
TRAINING_ITEMS = 5  # of the 8 of each intent

PREDICT_IN_A_NEW_PROCESS = """
import sys, joblib, numpy as np
folder, texts = sys.argv[1], joblib.load(sys.argv[1] + "/texts.joblib")
for name in ("pipeline", "classifier"):
    model = joblib.load(f"{folder}/{name}.joblib")
    np.save(f"{folder}/{name}.npy", model.predict_proba(texts))
"""


def main() -> None:
    """Run the example."""
    began = time.perf_counter()
    requests = load_support_requests()
    texts = np.array(requests.data, dtype=object)
    intents = np.array(requests.target_names)[requests.target]
    is_new = requests.groups % 8 >= TRAINING_ITEMS
    train = (requests.languages == "en") & ~is_new
    X, y = texts[train].tolist(), intents[train]
    print(f"{len(X)} English training texts, {is_new.sum()} new texts in 16 languages\n")

    pipeline = Pipeline([("enc", MiniLMEncoder(verbose=1)), ("clf", LogisticRegression(C=100))])
    models = {
        "pipeline": pipeline.fit(X, y),
        "classifier": MiniLMClassifier(random_state=0, verbose=1).fit(X, y),
    }

    new_texts = texts[is_new].tolist()
    hits = {name: model.predict(new_texts) == intents[is_new] for name, model in models.items()}
    print(f"\n{'accuracy':<10}{'pipeline':>10}{'classifier':>12}")
    for language in dict.fromkeys(requests.languages.tolist()):
        rows = requests.languages[is_new] == language
        print(
            f"{language:<10}"
            + f"{hits['pipeline'][rows].mean():>10.2f}{hits['classifier'][rows].mean():>12.2f}"
        )
    print(f"{'mean':<10}{hits['pipeline'].mean():>10.2f}{hits['classifier'].mean():>12.2f}\n")

    with tempfile.TemporaryDirectory() as folder:
        joblib.dump(new_texts, f"{folder}/texts.joblib")
        for name, model in models.items():
            joblib.dump(model, f"{folder}/{name}.joblib")
        subprocess.run([sys.executable, "-c", PREDICT_IN_A_NEW_PROCESS, folder], check=True)
        for name, model in models.items():
            same = np.array_equal(np.load(f"{folder}/{name}.npy"), model.predict_proba(new_texts))
            size = Path(f"{folder}/{name}.joblib").stat().st_size
            print(f"{name}: saved in {size / 1e3:,.0f} kB, loaded in a new process, same predictions: {same}")
            if not same:
                raise SystemExit(f"The {name} predicts otherwise after loading.")
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
