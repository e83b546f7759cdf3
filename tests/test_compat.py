"""Packages that take scikit-learn estimators, on real text. Each is left out where it is not installed."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from skminilm import MiniLMClassifier, MiniLMEncoder

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other packages
HEAD = dict(trainable="head", epochs=1, random_state=0)


def test_optuna(english):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    X, y = english

    def objective(trial):
        encoder = MiniLMEncoder(pooling=trial.suggest_categorical("pooling", ["mean", "cls"]))
        classifier = LogisticRegression(C=trial.suggest_float("C", 0.01, 10, log=True))
        return cross_val_score(make_pipeline(encoder, classifier), X, y, cv=2).mean()

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=4)
    assert study.best_value > 0.4
    assert len({trial.value for trial in study.trials}) > 1


def test_cleanlab_finds_wrong_labels(requests):
    pytest.importorskip("cleanlab")
    from cleanlab.classification import CleanLearning

    rows = np.flatnonzero(np.isin(requests.languages, ["en", "es", "zh"]))
    X = np.array([requests.data[row] for row in rows], dtype=object)
    labels = requests.target[rows].copy()
    wrong = np.arange(0, len(rows), 12)
    labels[wrong] = (labels[wrong] + 3) % 8
    cleaner = CleanLearning(make_pipeline(MiniLMEncoder(), LogisticRegression(C=10)), seed=0, cv_n_folds=4)
    quality = cleaner.find_label_issues(X, labels)["label_quality"].to_numpy()
    assert roc_auc_score(np.isin(np.arange(len(rows)), wrong), -quality) > 0.9


def test_imbalanced_learn(english):
    pytest.importorskip("imblearn")
    from imblearn.over_sampling import RandomOverSampler
    from imblearn.pipeline import make_pipeline as make_imbalanced_pipeline

    X, y = english
    few = [row for row in range(len(X)) if y[row] != "delivery" or row % 8 < 2]
    model = make_imbalanced_pipeline(
        MiniLMEncoder(), RandomOverSampler(random_state=0), LogisticRegression(C=10)
    )
    model.fit([X[row] for row in few], y[few])
    assert model.score(X, y) > 0.8


def test_skrub_takes_the_encoder_for_its_text_columns(english):
    skrub = pytest.importorskip("skrub")
    X, y = english
    frame = pd.DataFrame({"text": X, "size": np.arange(len(X)) % 5})
    vectorizer = skrub.TableVectorizer(cardinality_threshold=5, high_cardinality=MiniLMEncoder())
    model = make_pipeline(vectorizer, LogisticRegression(C=10)).fit(frame, y)
    assert model.score(frame, y) > 0.9
    assert sum("minilmencoder" in name for name in vectorizer.get_feature_names_out()) == 384


def test_skrub_gives_the_encoder_one_column_at_a_time(english):
    skrub = pytest.importorskip("skrub")
    X, _ = english
    frame = pd.DataFrame({"subject": X, "body": X[::-1], "size": np.arange(len(X))})
    each = skrub.ApplyToCols(MiniLMEncoder(), cols=["subject", "body"]).fit_transform(frame)
    assert each.shape == (len(X), 2 * 384 + 1)
    np.testing.assert_array_equal(each.to_numpy()[:, :384], MiniLMEncoder().transform(X))


def test_mlflow_logs_and_loads(english, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    X, y = english
    monkeypatch.chdir(tmp_path)
    model = MiniLMClassifier(**HEAD).fit(X, y)
    mlflow.sklearn.save_model(model, tmp_path / "model", serialization_format="cloudpickle")
    loaded = mlflow.sklearn.load_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


ON_DASK = """
import joblib, sys
from distributed import Client, LocalCluster
from sklearn.model_selection import cross_val_predict
from skminilm import MiniLMClassifier
from skminilm.datasets import load_support_requests
if __name__ == "__main__":
    requests = load_support_requests()
    X, y = requests.data[:128], requests.target[:128]
    model = MiniLMClassifier(trainable="head", epochs=1, precision="fp32", random_state=0)
    expected = cross_val_predict(model, X, y, cv=2, method="predict_proba")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        with joblib.parallel_config("dask"):
            found = cross_val_predict(model, X, y, cv=2, method="predict_proba")
    assert abs(found - expected).max() < 1e-3, abs(found - expected).max()  # threads change the rounding
"""


@pytest.mark.slow
def test_dask_runs_cross_validation_on_a_cluster(tmp_path):
    """In a process of its own: workers talk over sockets, which these tests block."""
    pytest.importorskip("distributed")
    (tmp_path / "script.py").write_text(ON_DASK)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
