"""Write estimators in the current format, for tests of later versions: python tests/data/write_saved.py.

What is there stays as an earlier version wrote it: delete its folder and its line in expected.json to write it anew.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
    _persistence,
)
from skminilm.datasets import load_support_requests

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import tiny_bert, train_wordpiece, write_same_xlmr
from test_persistence import predictions

folder = Path(__file__).parent / "saved" / f"v{_persistence.FORMAT_VERSION}"
file = folder / "expected.json"
expected = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
requests = load_support_requests()
X, y = requests.data[::16], np.array(requests.target_names)[requests.target[::16]]
numbers = np.arange(len(X)) / 10
texts = expected.setdefault("texts", X[:4])
questions = expected.setdefault("questions", [["Which one is it?", text] for text in texts])
topics = ["delivery", "payment", "account"]
pairs = [(text, f"This text is about {topic}.") for text in X[:8] for topic in topics]
entailed = np.where(["payment" in hypothesis for _, hypothesis in pairs], "entailment", "contradiction")

common = dict(precision="fp32", random_state=0)
head = dict(trainable="head", epochs=1, **common)
# Rates at which the tuned network predicts otherwise than the one it started from.
tuned = dict(epochs=20, batch_size=8, learning_rate=2e-2, head_learning_rate=0.1, max_length=64, **common)
nli = MiniLMClassifier("xlmr", trainable=1, **tuned)
estimators = {
    "encoder": (MiniLMEncoder(precision="fp32"), X),
    "classifier": (MiniLMClassifier(**head), X, y),
    "regressor": (MiniLMRegressor(**head), X, numbers),
    "top": (MiniLMClassifier("xlmr", trainable=1, **tuned), X, y),
    "lora": (MiniLMClassifier("xlmr", trainable="lora", **tuned), X, y),
    "fp16": (MiniLMClassifier("xlmr", trainable="all", save_weights="fp16", **tuned), X, y),
    "full": (MiniLMClassifier("tiny", trainable=1, save_weights="full", **tuned), X[:16], y[:16]),
    "tuned_regressor": (MiniLMRegressor("xlmr", trainable=1, **tuned), X, numbers),
    "question_answerer": (
        MiniLMQuestionAnswerer("xlmr", trainable=1, stride=16, **tuned),
        questions,
        [text.split()[2] for text in texts],
    ),
    "zero_shot": (MiniLMZeroShotClassifier(labels=topics, nli=nli),),
}
with tempfile.TemporaryDirectory() as networks:
    os.chdir(networks)  # `model` is a path from here, as it is in the test
    write_same_xlmr(Path("xlmr"))
    tokenizer = train_wordpiece(requests.data[:128], 300)
    tiny_bert(len(tokenizer), hidden_size=16, intermediate_size=32).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    nli.fit(pairs, entailed)
    for name, (estimator, *data) in estimators.items():
        if name not in expected:
            estimator.fit(*data).save(folder / name)
            expected[name] = predictions(estimator, expected).tolist()
    os.chdir(folder)
file.write_text(json.dumps(expected, ensure_ascii=False, indent=1), encoding="utf-8")
