import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from skminilm import MiniLMClassifier
from skminilm._encoding import warn_of_truncation
from skminilm._targets import ClassTargets
from skminilm.checkpoints import EncodingSettings
from skminilm.engine.hardware import cpu_has_bf16
from skminilm.finetuning import (
    FixedVectors,
    SoftmaxObjective,
    Split,
    TrainingHooks,
    TrainingOptions,
    loop,
    train,
)
from skminilm.finetuning.loop import should_stop


def test_early_stopping_goes_back_to_the_best_epoch(split):
    X, y, X_new, _ = split
    options = dict(trainable=1, epochs=6, n_iter_no_change=2, early_stopping=True, random_state=0)
    ruined = MiniLMClassifier(learning_rate=0.05, head_learning_rate=1.0, **options)
    ruined.fit(X, y, X_val=X, y_val=y)
    scores = [epoch["validation_score"] for epoch in ruined.history_]
    assert ruined.score(X, y) >= max(scores)
    assert ruined.best_epoch_ == 0
    assert ruined.n_iter_ == 2
    start = LogisticRegression(C=10, max_iter=2000).fit(ruined.encode(X), y)
    np.testing.assert_allclose(
        ruined.predict_proba(X_new), start.predict_proba(ruined.encode(X_new)), atol=5e-3
    )


def test_early_stopping_sets_texts_aside_by_class(split, monkeypatch):
    X, y, _, _ = split
    seen = []
    original = loop._Training.__init__

    def watching(self, network, coef, intercept, objective, targets, row_weights, rows, *others):
        seen.append((targets[rows.training], targets[rows.validation]))
        original(self, network, coef, intercept, objective, targets, row_weights, rows, *others)

    monkeypatch.setattr(loop._Training, "__init__", watching)
    options = dict(trainable="head", early_stopping=True, validation_fraction=0.2, random_state=0)
    MiniLMClassifier(**options).fit(X, y)
    training, validation = seen[0]
    assert (len(training), len(validation)) == (32, 8)
    assert sorted(validation) == list(range(8))
    with pytest.raises(
        ValueError, match=r"early_stopping=True cannot set validation_fraction=0\.01 of 40 texts"
    ):
        MiniLMClassifier(**{**options, "validation_fraction": 0.01}).fit(X, y)


def test_the_only_text_of_a_class_is_trained_on(split):
    X, y, _, _ = split
    X, y = [*X, "Is there a fraud department?"], [*y, "fraud"]
    options = dict(trainable="head", early_stopping=True, validation_fraction=0.3, random_state=0)
    classifier = MiniLMClassifier(**options).fit(X, y)
    assert classifier.predict(["Is there a fraud department?"]) == ["fraud"]
    several = len(X) - 1
    with pytest.raises(
        ValueError, match=rf"of {several + 1} texts aside: 8 classes .* between 0\.2 and 0\.8, or"
    ):
        MiniLMClassifier(**{**options, "validation_fraction": 0.01}).fit(X, y)
    with pytest.raises(ValueError, match=r"2 classes have two texts .* Set it to 0\.5, or give"):
        MiniLMClassifier(early_stopping=True).fit(["a", "b", "c", "d"], [1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"0 classes have two texts.* Give more texts, or X_val and y_val"):
        MiniLMClassifier(**options).fit(["a", "b", "c"], [1, 2, 3])


def test_texts_set_aside_by_the_user_are_reported(split):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(trainable="head", epochs=3, random_state=0)
    classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert classifier.n_iter_ == classifier.best_epoch_ == 3
    assert classifier.history_[-1]["validation_score"] == pytest.approx(classifier.score(X_new, y_new))
    with pytest.raises(ValueError, match="X_val and y_val belong together"):
        classifier.fit(X, y, X_val=X_new)
    with pytest.raises(ValueError, match="label that the training y lacks: row 1 is 'other'"):
        classifier.fit(X, y, X_val=X_new[:2], y_val=[y_new[0], "other"])


def test_the_first_text_set_aside_is_told_from_those_trained_on():
    settings = EncodingSettings("mean", True, "", 8)
    with pytest.warns(UserWarning, match=r"1 of 3 texts .* the longest, row 0 of X_val, has 9\."):
        warn_of_truncation(np.array([3, 4, 9]), settings, n_rows=2)


@pytest.mark.parametrize(
    ("ranks", "patience", "stop"),
    [
        ([1, 2, 3], 1, False),
        ([3, 2], 1, True),
        ([3, 2], 2, False),
        ([1, 3, 3, 2], 2, True),
        ([2, 1, 3], 2, False),
    ],
)
def test_should_stop(ranks, patience, stop):
    assert should_stop(ranks, patience) is stop


def test_early_stopping_keeps_a_new_head_only_if_it_is_as_good(split, monkeypatch):
    X, y, X_new, y_new = split
    original, starts = ClassTargets.fit_head, []

    def useless_when_refitted(self, *args):
        starts.append(1)
        coef, intercept = original(self, *args)
        return (coef, intercept) if len(starts) == 1 else (-coef, intercept)

    monkeypatch.setattr(ClassTargets, "fit_head", useless_when_refitted)
    classifier = MiniLMClassifier(trainable=2, epochs=2, early_stopping=True, random_state=0)
    classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert classifier.score(X_new, y_new) > 0.5


def test_a_split_without_weight_is_refused(split):
    X, y, _, _ = split
    weights = np.zeros(len(X))
    weights[0] = 1
    with pytest.raises(
        ValueError, match=r"early_stopping=True cannot set validation_fraction=0.25 of 1 texts"
    ):
        MiniLMClassifier(trainable="head", early_stopping=True, validation_fraction=0.25, random_state=0).fit(
            X, y, sample_weight=weights
        )


def test_of_equal_scores_the_lower_loss_is_better(split):
    X, y, _, _ = split
    options = dict(trainable="head", epochs=4, early_stopping=True, random_state=0)
    classifier = MiniLMClassifier(**options).fit(X, y, X_val=X, y_val=y)
    losses, scores = ([e[f"validation_{k}"] for e in classifier.history_] for k in ("loss", "score"))
    assert set(scores) == {1.0}
    assert classifier.best_epoch_ == 1 + int(np.argmin(losses))


def test_a_second_fit_that_brings_nothing_leaves_the_best_epoch(split):
    X, y, X_new, y_new = split
    options = dict(trainable=1, early_stopping=True, random_state=0, warm_start=True)
    model = MiniLMClassifier(epochs=3, **options).fit(X, y, X_val=X_new, y_val=y_new)
    best, digest = model.best_epoch_, model.weights_digest_
    model.set_params(learning_rate=10.0, head_learning_rate=10.0, epochs=1)
    model.fit(X, y, X_val=X_new, y_val=y_new)
    assert model.n_iter_ == 4
    assert model.weights_digest_ == digest
    assert model.best_epoch_ == best


def test_the_best_epoch_counts_from_the_first_fit(split):
    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable="head", epochs=2, warm_start=True, random_state=0)
    assert classifier.fit(X, y).best_epoch_ == 2
    assert classifier.fit(X, y).best_epoch_ == classifier.n_iter_ == 4


def test_texts_set_aside_do_not_change_what_is_learned(split):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(trainable="head", epochs=2, random_state=0)
    weights = np.full(len(X), 1e-3)
    alone = clone(classifier).fit(X, y, sample_weight=weights)
    watched = clone(classifier).fit(X, y, sample_weight=weights, X_val=X_new, y_val=y_new)
    np.testing.assert_array_equal(watched.coef_, alone.coef_)


# Without the instructions bfloat16 takes ten times as long as float32.
bf16 = pytest.param("bf16", marks=pytest.mark.skipif(not cpu_has_bf16(), reason="no bfloat16 here"))


@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_the_head_is_fitted_anew_to_the_network_of_the_best_epoch(split, monkeypatch, precision):
    X, y, X_new, y_new = split
    fits = {}
    for refit_head in (False, True):
        # The first epoch is the best.
        figures = iter([(1.0, 0.0), (0.1, 1.0), (0.9, 0.5), (0.9, 0.5), (0.1, 1.0)])
        monkeypatch.setattr(loop._Training, "_validate", lambda self, figures=figures: next(figures))
        options = dict(trainable=1, epochs=3, early_stopping=True, learning_rate=1e-3, precision=precision)
        model = MiniLMClassifier(refit_head=refit_head, random_state=0, **options)
        fits[refit_head] = model.fit(X, y, X_val=X_new, y_val=y_new)
    trained, refitted = fits[False], fits[True]
    assert trained.best_epoch_ == refitted.best_epoch_ == 1
    assert refitted.weights_digest_ == trained.weights_digest_
    expected = LogisticRegression(C=30, max_iter=2000).fit(trained.encode(X), y)
    np.testing.assert_allclose(
        refitted.predict_proba(X_new), expected.predict_proba(trained.encode(X_new)), atol=1e-2
    )


def test_the_head_of_an_untrained_start_is_not_fitted_anew(split, transformers_folder, monkeypatch):
    X, y, X_new, y_new = split
    options = dict(
        trainable=1, init_head="random", epochs=1, early_stopping=True, max_length=64, random_state=0
    )
    heads = []
    for refit_head in (False, True):
        figures = iter([(0.1, 1.0), (0.9, 0.5), (0.1, 1.0)])
        monkeypatch.setattr(loop._Training, "_validate", lambda self, figures=figures: next(figures))
        model = MiniLMClassifier(transformers_folder, refit_head=refit_head, **options)
        heads.append(model.fit(X, y, X_val=X_new[:8], y_val=y_new[:8]).coef_)
        assert model.best_epoch_ == 0
    np.testing.assert_array_equal(*heads)


def test_a_look_at_the_best_epoch_changes_nothing_in_training():
    class Looks(TrainingHooks):
        def end_epoch(self, result):
            result()
            return False

    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    targets = (vectors[:, 0] > 0).astype(np.int64)
    targets[20:] = 1 - targets[20:]  # each epoch is worse than the start
    start = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    options = TrainingOptions(
        epochs=6, batch_size=4, head_learning_rate=1.0, warmup_ratio=0.0, n_iter_no_change=6, seed=0
    )
    split = Split(np.arange(20), np.arange(20, 40))
    given = (*start, SoftmaxObjective(), targets, np.ones(40), split, options)
    plain, looked = (train(FixedVectors(vectors), *given, hooks=hooks) for hooks in (None, Looks()))
    assert plain.best_epoch == 0
    losses = [[e["validation_loss"] for e in result.history] for result in (plain, looked)]
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(plain.coef, looked.coef)


def test_other_labels_in_y_val(transformers_folder):
    classifier = MiniLMClassifier(transformers_folder, trainable="head", epochs=1, max_length=24)
    for y_val in ([[1, 0, 1]], [[1]]):
        with pytest.raises(ValueError, match="y_val"):
            classifier.fit(["a", "b"], [[1, 0], [0, 1]], X_val=["c"], y_val=y_val)
