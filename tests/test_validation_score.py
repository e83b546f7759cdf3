import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, get_scorer, mean_absolute_error

from skminilm import MiniLMClassifier, MiniLMRegressor

HEAD = dict(trainable="head", epochs=2, random_state=0)


def last_score(estimator):
    return estimator.history_[-1]["validation_score"]


@pytest.mark.parametrize("scoring", ["f1_macro", "neg_log_loss", "roc_auc_ovr", "top_k_accuracy"])
def test_scorers_of_scikit_learn(split, scoring):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(scoring=scoring, **HEAD).fit(X, y, X_val=X_new, y_val=y_new)
    assert last_score(classifier) == pytest.approx(get_scorer(scoring)(classifier, X_new, y_new), rel=1e-5)


def test_the_default_by_its_name(split):
    X, y, X_new, y_new = split
    scores = []
    for scoring in (None, "accuracy"):
        classifier = MiniLMClassifier(scoring=scoring, **{**HEAD, "trainable": 1})
        classifier.fit(X, y, X_val=X_new, y_val=y_new)
        scores.append([epoch["validation_score"] for epoch in classifier.history_])
    assert scores[0] == pytest.approx(scores[1])
    assert min(scores[0]) > 0.3


def test_the_epoch_with_the_best_score_is_kept(split):
    X, y, X_new, y_new = split
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.4, 0.0])  # of the start, of four epochs, and of the head fitted anew
    options = {**HEAD, "trainable": 1, "epochs": 4, "early_stopping": True}
    stopped = MiniLMClassifier(scoring=lambda *_: next(scores), **options)
    stopped.fit(X, y, X_val=X_new, y_val=y_new)
    assert [epoch["validation_score"] for epoch in stopped.history_] == [0.2, 0.9, 0.3, 0.4]
    assert stopped.best_epoch_ == 2
    assert next(scores, None) is None


def test_a_function_scores_the_estimator(split):
    X, y, X_new, y_new = split
    seen = []

    def recall_of_the_worst_class(estimator, texts, labels):
        seen.append(texts)
        right = estimator.predict(texts) == labels
        assert estimator.score(texts, labels) == right.mean()
        assert estimator.decision_function(texts).shape == (len(texts), 8)
        return min(right[labels == label].mean() for label in estimator.classes_)

    classifier = MiniLMClassifier(scoring=recall_of_the_worst_class, **HEAD)
    classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert seen == [X_new, X_new]
    assert last_score(classifier) == recall_of_the_worst_class(classifier, X_new, y_new)
    classifier.set_params(scoring=lambda model, X, y: model.score(X[:3], y[:3]))
    with pytest.raises(ValueError, match="all the texts that are set aside, together"):
        classifier.fit(X, y, X_val=X_new, y_val=y_new)


def test_pairs_are_scored(split):
    X, y, X_new, y_new = split
    pairs, new_pairs = (list(zip(texts, texts[::-1], strict=True)) for texts in (X, X_new))
    classifier = MiniLMClassifier(scoring="balanced_accuracy", **HEAD)
    classifier.fit(pairs, y, X_val=new_pairs, y_val=y_new)
    expected = balanced_accuracy_score(y_new, classifier.predict(new_pairs))
    assert last_score(classifier) == pytest.approx(expected)


def test_several_labels_are_scored(split):
    X, y, X_new, y_new = split
    labels = sorted(set(y))[:3]
    Y, Y_new = (np.stack([some == label for label in labels], axis=1).astype(int) for some in (y, y_new))
    classifier = MiniLMClassifier(scoring="f1_macro", **HEAD).fit(X, Y, X_val=X_new, y_val=Y_new)
    assert last_score(classifier) == pytest.approx(
        f1_score(Y_new, classifier.predict(X_new), average="macro")
    )


@pytest.mark.parametrize("n_targets", [1, 2])
def test_numbers_are_scored_in_their_own_units(split, n_targets):
    X, _, X_new, _ = split
    lengths, new_lengths = (np.array([[len(x), 1000.0 + x.count("e")] for x in some]) for some in (X, X_new))
    y, y_new = (lengths, new_lengths) if n_targets == 2 else (lengths[:, 0], new_lengths[:, 0])
    regressor = MiniLMRegressor(scoring="neg_mean_absolute_error", **HEAD)
    regressor.fit(X, y, X_val=X_new, y_val=y_new)
    expected = -mean_absolute_error(y_new, regressor.predict(X_new))
    assert last_score(regressor) == pytest.approx(expected, rel=1e-5)


def test_weights_count_where_they_differ(split):
    X, y, _, _ = split
    options = dict(early_stopping=True, validation_fraction=0.5, **HEAD)
    seen = []

    def scoring(estimator, texts, labels, sample_weight=None):
        seen.append(sample_weight)
        return estimator.score(texts, labels, sample_weight)

    weights = np.where(np.arange(len(X)) % 3 == 0, 4.0, 1.0)
    by_default = MiniLMClassifier(**options).fit(X, y, weights)
    by_function = MiniLMClassifier(scoring=scoring, **options).fit(X, y, weights)
    assert last_score(by_default) == pytest.approx(last_score(by_function))
    assert all(len(set(some)) == 2 for some in seen)
    seen.clear()
    MiniLMClassifier(scoring=scoring, **options).fit(X, y)
    assert seen
    assert not any(some is not None for some in seen)


def test_scores_that_take_no_weights_count_all_texts_alike(split):
    X, y, _, _ = split
    options = dict(early_stopping=True, validation_fraction=0.5, **HEAD)
    weights = np.where(np.arange(len(X)) % 3 == 0, 4.0, 1.0)

    def scoring(estimator, texts, labels):
        return np.mean(estimator.predict(texts) == labels)

    by_function = MiniLMClassifier(scoring=scoring, **options).fit(X, y, weights)
    by_name = MiniLMClassifier(scoring="accuracy", **options).fit(X, y, weights)
    n_right = last_score(by_function) * len(X) / 2
    assert n_right == pytest.approx(round(n_right))
    assert last_score(by_function) != pytest.approx(last_score(by_name))

    lengths = np.array([len(x) for x in X])
    regressor = MiniLMRegressor(scoring="neg_max_error", **options).fit(X, lengths, weights)
    assert last_score(regressor) < 0


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ("f1_makro", "f1_makro"),
        (["accuracy"], "'scoring' parameter"),
        (lambda *_: np.nan, "gives NaN for the .* texts that are set aside"),
    ],
)
def test_what_is_no_score_is_refused(split, scoring, message):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(scoring=scoring, **HEAD)
    with pytest.raises(ValueError, match=message):
        classifier.fit(X, y, X_val=X_new, y_val=y_new)


def test_the_name_is_checked_where_nothing_is_set_aside(split):
    X, y, _, _ = split
    with pytest.raises(ValueError, match="f1_makro"):
        MiniLMClassifier(scoring="f1_makro", **HEAD).fit(X, y)
    assert MiniLMClassifier(scoring="f1_macro", **HEAD).fit(X, y).score(X, y) > 0.5


def test_a_pickle_that_is_older_than_a_parameter(split):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(**HEAD).fit(X, y)
    state = classifier.__getstate__()
    del state["scoring"]
    opened = MiniLMClassifier.__new__(MiniLMClassifier)
    opened.__setstate__(state)
    assert opened.get_params() == classifier.get_params()
    np.testing.assert_array_equal(opened.predict(X_new), classifier.predict(X_new))
