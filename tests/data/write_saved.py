"""Write estimators in the current format, for tests of later versions: python tests/data/write_saved.py."""

import json
from pathlib import Path

import numpy as np

from skminilm import MiniLMClassifier, MiniLMEncoder, MiniLMRegressor, _persistence
from skminilm.datasets import load_support_requests

folder = Path(__file__).parent / "saved" / f"v{_persistence.FORMAT_VERSION}"
requests = load_support_requests()
X, y = requests.data[::16], np.array(requests.target_names)[requests.target[::16]]
options = dict(trainable="head", epochs=1, precision="fp32", random_state=0)
estimators = {
    "encoder": MiniLMEncoder(precision="fp32").fit(X),
    "classifier": MiniLMClassifier(**options).fit(X, y),
    "regressor": MiniLMRegressor(**options).fit(X, np.arange(len(X)) / 10),
}
texts = X[:4]
expected = {
    "texts": texts,
    "encoder": estimators["encoder"].transform(texts)[:, :8].tolist(),
    "classifier": estimators["classifier"].predict_proba(texts).tolist(),
    "regressor": estimators["regressor"].predict(texts).tolist(),
}
for name, estimator in estimators.items():
    estimator.save(folder / name)
(folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1))
