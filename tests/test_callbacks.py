import numpy as np
import pytest

from skminilm import MiniLMClassifier


def test_scikit_learn_callbacks_hear_of_epochs_and_can_stop(split):
    pytest.importorskip("sklearn.callback")
    X, y, X_new, _ = split
    heard = []

    class Callback:
        def setup(self, estimator, context):
            heard.append("setup")

        def teardown(self, estimator, context):
            heard.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            heard.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            heard.append(f"end {context.task_name}")
            if context.task_name == "epoch":
                assert fitted_estimator.predict(X_new[:2]).shape == (2,)
            return context.task_name == "epoch" and context.task_id == 1

    classifier = MiniLMClassifier(trainable=1, epochs=4, random_state=0).set_callbacks(Callback())
    classifier.fit(X, y)
    assert classifier.n_iter_ == 2
    epoch = ["begin epoch", "end epoch"]
    assert heard == ["setup", "begin fit", *epoch, *epoch, "end fit", "teardown"]


def test_callbacks_get_weights_and_see_what_a_fit_has_learned(split):
    pytest.importorskip("sklearn.callback")
    X, y, X_new, _ = split
    weights = np.linspace(1, 2, len(X))
    seen = []

    class Callback:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, *, metadata):
            np.testing.assert_array_equal(metadata["sample_weight"], weights)

        def on_fit_task_end(self, estimator, context, *, metadata, fitted_estimator):
            np.testing.assert_array_equal(metadata["sample_weight"], weights)
            if context.task_name == "fit":
                seen.append((estimator.classes_.tolist(), fitted_estimator.predict_proba(X_new)))

    classifier = MiniLMClassifier(trainable="head", epochs=1, random_state=0).set_callbacks(Callback())
    for labels in (y, np.char.add(y, "!")):  # the second fit is not seen as the first
        classifier.fit(X, labels, sample_weight=weights)
        classes, probabilities = seen.pop()
        assert classes == sorted(set(labels.tolist()))
        np.testing.assert_array_equal(probabilities, classifier.predict_proba(X_new))


def test_callbacks_get_texts_that_came_once(split):
    callbacks = pytest.importorskip("sklearn.callback")
    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable=1, epochs=1, random_state=0)
    monitor = callbacks.ScoringMonitor(scoring="accuracy")
    classifier.set_callbacks(monitor).fit((text for text in X), iter(y))
    assert classifier.score(X, y) in [row["accuracy"] for row in monitor.get_logs().data]


@pytest.mark.parametrize(
    "y", [[0, 1, 1, 0], [[0, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1]]], ids=["classes", "labels"]
)
def test_verbose_shows_that_the_head_is_fitted(y, capsys):
    MiniLMClassifier(trainable="head", epochs=1, verbose=1, random_state=0).fit(["a", "b", "c", "d"], y)
    n_models = np.asarray(y).reshape(4, -1).shape[1]
    assert f"head: 100%|{'█' * 10}| {n_models}/{n_models}" in capsys.readouterr().err


def test_verbose_shows_progress_and_quiet_is_quiet(split, capsys):
    X, y, _, _ = split
    MiniLMClassifier(trainable=1, epochs=1, random_state=0).fit(X, y)
    assert capsys.readouterr() == ("", "")
    MiniLMClassifier(trainable=1, epochs=1, random_state=0, verbose=1).fit(X, y)
    shown = capsys.readouterr().err
    assert "fine-tune: 100%" in shown
    assert "loss=" in shown


@pytest.mark.parametrize("trainable", [1, "head"])
def test_the_history_tells_rate_and_speed_of_each_epoch(split, transformers_folder, trainable):
    X, y, _, _ = split
    rates = dict(learning_rate=1e-3, head_learning_rate=4e-3)
    options = dict(
        trainable=trainable, epochs=2, batch_size=4, warmup_ratio=0.0, max_length=64, random_state=0
    )
    model = MiniLMClassifier(transformers_folder, **rates, **options).fit(X[:8], y[[0, 5] * 4])
    peak = 4e-3 if trainable == "head" else 1e-3
    assert [record["learning_rate"] for record in model.history_] == pytest.approx([peak / 2, 0.0])
    for record in model.history_:
        assert record["texts_per_s"] * record["seconds"] == pytest.approx(8)
