import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import train_test_split

from skminilm import MiniLMClassifier
from skminilm._targets import MultilabelTargets


def test_indicator_matrices_give_any_number_of_labels(requests, split):
    X, y, X_new, y_new = split
    names = sorted(set(y))

    def labels(y):  # the intent, and whether it is one of two
        one_hot = y[:, None] == np.array(names)
        return np.column_stack([one_hot, np.isin(y, names[:2]), np.ones(len(y))]).astype(int)

    classifier = MiniLMClassifier(trainable=2, random_state=0).fit(X, labels(y))
    probabilities = classifier.predict_proba(X_new)
    assert probabilities.shape == (len(X_new), 10)
    predicted = classifier.predict(X_new)
    np.testing.assert_array_equal(predicted, probabilities > 0.5)
    np.testing.assert_array_equal(classifier.classes_, np.arange(10))
    assert (predicted[:, 9] == 1).all()
    assert (np.array(names)[probabilities[:, :8].argmax(axis=1)] == y_new).mean() > 0.5
    assert classifier.score(X, labels(y)) > 0.9
    from scipy import sparse

    again = clone(classifier).fit(X, sparse.csr_matrix(labels(y)))
    np.testing.assert_array_equal(again.predict_proba(X_new), probabilities)
    again.coef_ = np.zeros_like(again.coef_)
    again.intercept_ = np.resize(
        np.float32([1e-9, -1e-9]), len(again.intercept_)
    )  # both probabilities are 0.5
    np.testing.assert_array_equal(again.predict(X_new), again.decision_function(X_new) > 0)
    bad = labels(y)
    bad[3, 1] = 2
    with pytest.raises(ValueError, match="row 3, column 1 is 2"):
        clone(classifier).fit(X, bad)


def labels_f1(y_true, y_pred):
    from sklearn.metrics import f1_score

    return f1_score(y_true, y_pred, average="macro", zero_division=0)


@pytest.mark.parametrize(
    "options", [{"trainable": "head"}, {"trainable": 1}, {"trainable": 1, "refit_head": False}]
)
def test_rare_labels_are_predicted_too(split, options):
    """Each of eight labels is on an eighth of the texts: rows as they are say no to nearly all of them."""
    X, y, X_new, y_new = split
    Y, Y_new = (column[:, None] == np.unique(y) for column in (y, y_new))
    classifier = MiniLMClassifier(epochs=3, random_state=0, **options)
    found = labels_f1(Y_new, clone(classifier).fit(X, Y).predict(X_new))
    as_they_are = clone(classifier).set_params(class_weight={0: 1, 1: 1}).fit(X, Y)
    assert found > labels_f1(Y_new, as_they_are.predict(X_new)) + 0.1
    balanced = clone(classifier).set_params(class_weight="balanced").fit(X, Y)
    assert labels_f1(Y_new, balanced.predict(X_new)) == found


def test_the_loss_of_validation_texts_has_no_weights_of_labels(split):
    X, y, X_new, y_new = split
    Y, Y_new = (column[:, None] == np.unique(y) for column in (y, y_new))
    options = dict(trainable="head", epochs=1, random_state=0, precision="fp32")
    classifier = MiniLMClassifier(refit_head=False, **options).fit(X, Y, X_val=X_new, y_val=Y_new)
    found = np.where(Y_new, *(sign * classifier.predict_log_proba(X_new) for sign in (-1, 0)))
    found = found - np.where(Y_new, 0, np.log1p(-classifier.predict_proba(X_new)))
    assert classifier.history_[0]["validation_loss"] == pytest.approx(found.mean(), rel=1e-4)


def test_weights_of_labels():
    y = np.zeros((100, 3), int)
    y[:25, 0] = y[0, 1] = 1  # a quarter, one of a hundred, none
    weights = MultilabelTargets(y, np.ones(100))._label_weights
    np.testing.assert_allclose(weights, [[2 / 3, 50 / 99, 0.5], [2, 20, 1]])
    doubled = np.ones(100)
    doubled[:25] = 3
    weights = MultilabelTargets(y, doubled)._label_weights
    np.testing.assert_allclose(weights[:, 0], [1, 1])
    weights = MultilabelTargets(y, np.ones(100), {1: 3})._label_weights
    np.testing.assert_allclose(weights[:, 0] / weights[0, 0], [1, 3])
    np.testing.assert_allclose(weights[:, 0] @ [0.75, 0.25], 1)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: 0, 1: 0}, "leaves no row with a weight in column 0 of y"),
        ({0: 0}, "leaves no row with a weight in column 2 of y"),
        ({2: 1}, "class_weight names 2: where y has several columns"),
        ({0: 1, 1: 2, 2: 3}, "class_weight names 2: where y has several columns"),  # one for each column
        ({0: -1}, "must be finite and >= 0"),
    ],
)
def test_weights_of_labels_that_cannot_be(class_weight, message):
    y = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match=message):
        MiniLMClassifier(class_weight=class_weight).fit(["a", "b", "c"], y)


def test_smoothing_moves_each_label_towards_one_half():
    targets = MultilabelTargets([[1, 0], [0, 1]], np.ones(2), label_smoothing=0.2)
    objective = targets.objective()
    at = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).logit().requires_grad_()
    objective.losses(at, torch.from_numpy(targets.values)).sum().backward()
    np.testing.assert_allclose(at.grad.numpy(), 0, atol=1e-6)


def test_smoothing_counts_with_several_labels(split):
    X, y, _, _ = split
    Y = np.column_stack([y == "delivery", y == "billing"]).astype(int)
    options = dict(trainable="head", epochs=2, random_state=0)
    plain = MiniLMClassifier(**options).fit(X, Y)
    smooth = MiniLMClassifier(label_smoothing=0.4, **options).fit(X, Y)
    assert np.abs(plain.coef_ - smooth.coef_).max() > 1e-4


def test_the_score_of_several_labels_is_that_of_the_estimator(split):
    X, y, X_new, y_new = split
    Y, Y_new = (np.column_stack([v == "delivery", v == "billing"]).astype(int) for v in (y, y_new))
    classifier = MiniLMClassifier(trainable="head", epochs=2, random_state=0)
    classifier.fit(X, Y, X_val=X_new, y_val=Y_new)
    assert 0 < classifier.score(X_new, Y_new) < 1
    assert classifier.history_[-1]["validation_score"] == pytest.approx(classifier.score(X_new, Y_new))


def test_shares_of_labels_are_those_of_the_texts_that_are_trained_on(transformers_folder):
    X = [f"text {number}" for number in range(40)]
    Y = np.zeros((40, 2), int)
    Y[::4, 0] = Y[::2, 1] = 1
    aside = train_test_split(np.arange(40), test_size=0.5, random_state=np.random.RandomState(0))[1]
    other = Y.copy()
    other[aside] = 1
    options = dict(
        trainable="head",
        epochs=1,
        early_stopping=True,
        validation_fraction=0.5,
        random_state=0,
        max_length=24,
    )
    losses = [
        MiniLMClassifier(transformers_folder, **options).fit(X, y).history_[0]["loss"] for y in (Y, other)
    ]
    assert losses[0] == losses[1]
