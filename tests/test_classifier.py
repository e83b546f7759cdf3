import copy
import json
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from conftest import plain_hidden_states
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score, train_test_split
from sklearn.utils import compute_sample_weight

from skminilm import MiniLMClassifier, MiniLMEncoder, clear_cache
from skminilm._targets import ClassTargets
from skminilm.checkpoints.digests import arrays_digest
from skminilm.engine import release_models


@pytest.fixture(scope="module")
def fitted(split):
    X, y, _, _ = split
    return MiniLMClassifier(random_state=0).fit(X, y)


def test_learns_from_english_and_reads_other_languages(fitted, split):
    _, _, X_new, y_new = split
    assert fitted.score(X_new, y_new) > 0.55  # by chance 0.125
    losses = [epoch["loss"] for epoch in fitted.history_]
    assert losses[-1] < losses[0]
    assert fitted.n_iter_ == len(losses) == 10
    assert set(fitted.history_[0]) == {"loss", "learning_rate", "seconds", "texts_per_s"}


def test_outputs_are_consistent(fitted, split):
    X_new = split[2]
    logits, probabilities = fitted.decision_function(X_new), fitted.predict_proba(X_new)
    assert probabilities.shape == logits.shape == (len(X_new), 8)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (logits.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert (fitted.predict(X_new) == fitted.classes_[probabilities.argmax(axis=1)]).all()
    np.testing.assert_allclose(fitted.predict_log_proba(X_new), np.log(probabilities), atol=1e-5)
    vectors = fitted.encode(X_new)
    assert vectors.shape == (len(X_new), 384)
    np.testing.assert_allclose(vectors @ fitted.coef_.T + fitted.intercept_, logits, atol=1e-5)
    untrained = MiniLMEncoder(max_length=128).transform(X_new)
    assert np.abs(vectors - untrained).max() > 1e-3


def test_two_fits_give_the_same_bytes(split):
    X, y, X_new, _ = split
    first, second = (MiniLMClassifier(trainable=2, epochs=2, random_state=3).fit(X, y) for _ in range(2))
    for name, array in first.weights_.items():
        assert array.tobytes() == second.weights_[name].tobytes(), name
    assert first.coef_.tobytes() == second.coef_.tobytes()
    assert first.predict_proba(X_new).tobytes() == second.predict_proba(X_new).tobytes()
    other = MiniLMClassifier(trainable=2, epochs=2, random_state=4).fit(X, y)
    assert other.coef_.tobytes() != first.coef_.tobytes()


@pytest.mark.parametrize(
    ("trainable", "layers", "embeddings"),
    [("head", [], False), (1, [11], False), (3, [9, 10, 11], False), ("all", list(range(12)), True)],
)
def test_trainable_says_what_changes(split, trainable, layers, embeddings):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable=trainable, epochs=1, random_state=0).fit(X[::2], y[::2])
    names = set(classifier.weights_)
    assert sorted({int(n.split(".")[1]) for n in names if n.startswith("layers.")}) == layers
    assert any(n.startswith("embeddings.") for n in names) is embeddings
    assert np.isfinite(classifier.predict_proba(X_new)).all()
    if trainable == "head":
        np.testing.assert_array_equal(
            classifier.encode(X_new), MiniLMEncoder(max_length=128).transform(X_new)
        )
        assert len(pickle.dumps(classifier)) < 100_000


def test_all_trains_only_the_rows_of_the_table_that_occur(split):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable="all", epochs=2, learning_rate=1e-3, random_state=0).fit(X, y)
    rows, values = (classifier.weights_[f"embeddings.word{part}"] for part in (".rows", ""))
    assert values.shape == (len(rows), 384)
    assert len(rows) < 500
    release_models()
    before = classifier.predict_proba(X_new)
    changed = copy.deepcopy(classifier)
    changed.weights_["embeddings.word"] = -values
    changed.weights_digest_ = "of the changed weights"
    assert np.abs(changed.predict_proba(X_new) - before).max() > 1e-3


def test_encoder_trains_all_layers_and_no_embeddings(fitted):
    assert {name.split(".")[1] for name in fitted.weights_} == {str(i) for i in range(12)}
    assert all(array.dtype == np.float32 for array in fitted.weights_.values())
    assert len(pickle.dumps(fitted)) < 86_000_000


def test_the_head_sees_the_vectors_of_transformers(split, reference):
    X, y, _, _ = split
    options = dict(
        trainable="head", init_head="probe", epochs=1, precision="fp32", random_state=0, prompt=None
    )
    classifier = MiniLMClassifier(**options).fit(X, y)
    vectors = reference(X)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.encode(X), vectors, atol=2e-5)


def test_gradients_of_the_packed_forward(split):
    """Against finite differences, in a direction of all trained weights at once."""
    import torch

    from skminilm.checkpoints import load_checkpoint, tokenize
    from skminilm.engine import read_trainable_weights
    from skminilm.engine.packing import make_pack
    from skminilm.engine.pooling import pool, unit_length

    checkpoint = load_checkpoint("bundled")
    short = replace(checkpoint.defaults, prompt="", max_length=64)
    batch = tokenize(checkpoint.tokenizer, split[0][:6], None, short)
    rows = np.argsort(-batch.lengths, kind="stable")
    weights = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in read_trainable_weights(checkpoint, 0, None)
    }
    pack = make_pack(batch, rows, torch.device("cpu"), 0.25)
    generator = torch.Generator().manual_seed(0)
    direction = {
        name: 1e-2 * torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for name, t in weights.items()
        if name.startswith("layers.1")
    }
    target = torch.randn(6, 384, generator=generator, dtype=torch.float64)

    def loss(step):
        moved = {n: t + step * direction[n] if n in direction else t for n, t in weights.items()}
        vectors = unit_length(pool_double(plain_hidden_states(moved, pack, checkpoint.config), pack))
        return (vectors * target).sum()

    def pool_double(hidden, pack):
        return torch.stack(
            [part.mean(dim=0) for part in hidden[: pack.n_tokens].split(pack.lengths.tolist())]
        )

    assert pool(torch.ones(len(pack.input_ids), 4), pack, "mean").dtype == torch.float32
    step = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(step), step)
    with torch.no_grad():
        numeric = (loss(torch.tensor(1e-4)) - loss(torch.tensor(-1e-4))) / 2e-4
    assert abs(float(slope) - float(numeric)) <= 1e-3 * abs(float(numeric)) + 1e-6


@pytest.mark.parametrize(
    "labels",
    [["no", "yes"], [0, 1], [False, True], [-1, 1]],
    ids=str,
)
def test_binary_labels_of_any_type(split, labels):
    X, y, X_new, _ = split
    y = np.array(labels)[(y == "delivery").astype(int)]
    classifier = MiniLMClassifier(trainable="head", random_state=0).fit(X, y)
    decision = classifier.decision_function(X_new)
    assert decision.shape == (len(X_new),)
    predicted = classifier.predict(X_new)
    assert predicted.dtype == y.dtype
    np.testing.assert_array_equal(predicted, np.array(labels)[(decision > 0).astype(int)])
    np.testing.assert_allclose(classifier.predict_proba(X_new)[:, 1], 1 / (1 + np.exp(-decision)), atol=1e-5)


def test_weights_of_classes_and_rows_count(split):
    X, y, X_new, _ = split
    options = dict(trainable="head", random_state=0, epochs=2)
    plain = MiniLMClassifier(**options).fit(X, y)
    favoured = MiniLMClassifier(class_weight={"delivery": 50.0}, **options).fit(X, y)
    assert (favoured.predict(X_new) == "delivery").sum() > (plain.predict(X_new) == "delivery").sum()
    by_row = MiniLMClassifier(**options).fit(X, y, sample_weight=np.where(y == "delivery", 50.0, 1.0))
    np.testing.assert_allclose(by_row.coef_, favoured.coef_, atol=1e-6)
    balanced = MiniLMClassifier(class_weight="balanced", **options).fit(X, y)
    np.testing.assert_allclose(balanced.coef_, plain.coef_, atol=1e-6)  # y is balanced already
    with pytest.raises(ValueError, match="class_weight names the class 'nothing', which y does not hold"):
        MiniLMClassifier(class_weight={"nothing": 2.0}, **options).fit(X, y)


def test_rows_of_weight_zero_do_not_count(split):
    X, y, X_new, _ = split
    wrong = np.roll(y, 1)
    options = dict(trainable="head", random_state=0, batch_size=80, epochs=3)
    clean = MiniLMClassifier(**options).fit(X, y)
    mixed = MiniLMClassifier(**options).fit(
        X + X, np.concatenate([y, wrong]), sample_weight=[1] * 40 + [0] * 40
    )
    np.testing.assert_allclose(mixed.predict_proba(X_new), clean.predict_proba(X_new), atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"trainable": 1},
        {"trainable": "head"},
        {"class_weight": "balanced"},
        dict(early_stopping=True, validation_fraction=0.25),
    ],
    ids=str,
)
def test_rows_of_weight_zero_are_as_if_they_were_left_out(split, options):
    X, y, X_new, _ = split
    counts = np.arange(len(X)) % 5 > 0
    model = MiniLMClassifier(**{"trainable": 1, "epochs": 2, "random_state": 0, "batch_size": 8, **options})
    without = clone(model).fit(np.array(X)[counts], y[counts])
    weighted = clone(model).fit(X, y, sample_weight=counts)
    assert len(weighted.history_) == len(without.history_)
    np.testing.assert_array_equal(weighted.predict_proba(X_new), without.predict_proba(X_new))


@pytest.mark.parametrize("options", [{"trainable": "head"}, {"trainable": 1}, {"refit_head": False}], ids=str)
def test_classes_of_weight_zero_are_hardly_ever_expected(split, options):
    X, y, X_new, _ = split
    absent = sorted(set(y))[:3]
    model = MiniLMClassifier(**{"trainable": "head", **options}, epochs=1, random_state=0)
    model.fit(X, y, sample_weight=(~np.isin(y, absent)).astype(float))
    assert model.classes_[:3].tolist() == absent
    assert model.predict_proba(X_new)[:, :3].sum(axis=1).mean() < 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"init_head": "random"},
        {"batch_size": 8},
        {"head_learning_rate": 1e-4},
        {"warmup_ratio": 0.9},
        {"label_smoothing": 0.3},
        {"max_length": 6},
        {"pooling": "cls"},
        {"prompt": "query: "},
        {"epochs": 4},
        {"precision": "bf16"},
        {"random_state": 7},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*max_length=6")
def test_every_training_parameter_counts(split, transformers_folder, changes):
    X, y, X_new = *split[:2], split[2][:32]
    options = dict(model=transformers_folder, max_length=64, trainable="head", random_state=0, epochs=2)
    options["precision"] = "fp32"
    plain = MiniLMClassifier(**options).fit(X, y).predict_proba(X_new)
    changed = MiniLMClassifier(**{**options, **changes}).fit(X, y).predict_proba(X_new)
    assert np.abs(plain - changed).max() > 1e-6


@pytest.mark.parametrize("changes", [{"learning_rate": 1e-3}, {"weight_decay": 10.0}], ids=str)
def test_encoder_parameters_count(split, changes):
    X, y, X_new = *split[:2], split[2][:32]
    options = dict(trainable=1, random_state=0, epochs=2)
    plain = MiniLMClassifier(**options).fit(X, y).predict_proba(X_new)
    changed = MiniLMClassifier(**{**options, **changes}).fit(X, y).predict_proba(X_new)
    assert np.abs(plain - changed).max() > 1e-6


def test_saved_models_predict_the_same_in_a_new_process(split, tmp_path):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable=1, epochs=1, random_state=0).fit(X, y)
    joblib.dump(classifier, tmp_path / "classifier.joblib")
    (tmp_path / "texts.json").write_text(json.dumps(X_new))
    code = (
        "import sys, json, joblib, numpy as np; folder = sys.argv[1]; texts = json.load(open(folder + '/texts.json'))\n"
        "models = [joblib.load(folder + '/classifier.joblib', mmap_mode=mode) for mode in (None, 'r')]\n"
        "np.save(folder + '/out.npy', [model.predict_proba(texts) for model in models])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=600)
    for found in np.load(tmp_path / "out.npy"):
        np.testing.assert_array_equal(found, classifier.predict_proba(X_new))


def test_state_holds_arrays_and_no_torch(fitted):
    assert b"torch" not in pickle.dumps({k: v for k, v in vars(fitted).items() if k != "weights_"})
    assert all(type(array) is np.ndarray for array in fitted.weights_.values())


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("bare", ["a"], "X is a bare str"),
        (["a", "b"], ["x"], "y has 1 rows, expected 2: y has none for row 1"),
        (["a", "b"], ["x", "x"], "one class only"),
        (["a", None], ["x", "y"], "row 1 is None"),
        (["a", "b"], None, "y is None"),
    ],
)
def test_bad_input(X, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MiniLMClassifier().fit(X, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"trainable": 13}, "trainable=13 is more than the 12 layers"),
        ({"trainable": 0}, "trainable.*must be"),
        ({"trainable": "top"}, "trainable.*must be"),
        ({"trainable": True}, r"trainable.*must be .* an int in the range \[1, inf\)\. Got True"),
        ({"trainable": np.True_}, "trainable.*must be"),
        ({"epochs": 0}, "epochs.*must be"),
        ({"epochs": True}, "epochs.*must be"),
        ({"batch_size": True}, "batch_size.*must be"),
        ({"n_iter_no_change": True}, "n_iter_no_change.*must be"),
        ({"head_learning_rate": True}, "head_learning_rate.*must be"),
        ({"weight_decay": False}, "weight_decay.*must be"),
        ({"label_smoothing": False}, "label_smoothing.*must be"),
        ({"learning_rate": -1}, "learning_rate.*must be"),
        ({"max_length": 1000}, "max_length=1000 is more than the 512 positions"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        MiniLMClassifier(**parameters).fit(["a", "b", "c"], [0, 1, 0])


def test_a_diverging_fit_names_the_step_and_keeps_the_old_model(split):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable="head", random_state=0).fit(X, y)
    before = classifier.predict_proba(X_new)
    classifier.set_params(trainable=1, learning_rate=1e38, head_learning_rate=1e38, warmup_ratio=0)
    with pytest.raises(
        FloatingPointError, match=r"The loss became .* in step \d+ of \d+\. Use a lower learning_rate"
    ):
        classifier.fit(X, y)
    classifier.set_params(trainable="head", learning_rate=5e-5, head_learning_rate=1e-2)
    np.testing.assert_array_equal(classifier.predict_proba(X_new), before)


@pytest.mark.parametrize("options", [{"trainable": "head"}, {"trainable": 1, "learning_rate": 1e38}], ids=str)
def test_a_last_step_that_diverges_is_an_error(split, options):
    X, y, _, _ = split
    options = {"head_learning_rate": 1e38, "epochs": 1, "batch_size": 64, "warmup_ratio": 0, **options}
    with pytest.raises(FloatingPointError, match="in step 1 of 1"):
        MiniLMClassifier(random_state=0, **options).fit(X, y)


@pytest.fixture(scope="module")
def top_layers(split):
    """A classifier whose top layers were trained, and what it predicts."""
    X, y, X_new, _ = split
    model = MiniLMClassifier(trainable=2, epochs=1, batch_size=64, random_state=0).fit(X, y)
    return model, model.predict_proba(X_new)


@pytest.mark.parametrize(
    "options",
    [{}, {"refit_head": False}, {"learning_rate": 1e6}, {"precision": "fp32", "learning_rate": 1e15}],
    ids=str,
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_weights_that_are_too_large_to_compute_with_are_never_kept(split, top_layers, epochs, options):
    X, y, X_new, _ = split
    model, expected = copy.deepcopy(top_layers)
    model.set_params(**{"epochs": epochs, "learning_rate": 1e10, "warmup_ratio": 0, **options})
    with pytest.raises(FloatingPointError, match=rf"in step \d of {epochs}\. Use a lower learning_rate"):
        model.fit(X, y)
    np.testing.assert_array_equal(model.set_params(precision="auto").predict_proba(X_new), expected)


def test_fit_inside_no_grad(split):
    import torch

    X, y, _, _ = split
    with torch.no_grad():
        inside = MiniLMClassifier(trainable=1, epochs=1, random_state=0).fit(X, y)
    outside = MiniLMClassifier(trainable=1, epochs=1, random_state=0).fit(X, y)
    np.testing.assert_array_equal(inside.coef_, outside.coef_)


def test_balanced_classes_count_by_their_weights(split):
    X, y, X_new, _ = split
    keep = np.arange(len(X)) % 3 > 0
    start = MiniLMClassifier(
        trainable="head", class_weight="balanced", precision="fp32", head_learning_rate=1e-12, random_state=0
    )
    without = start.fit(np.array(X)[keep], y[keep]).predict_proba(X_new)
    weighted = start.fit(X, y, sample_weight=keep).predict_proba(X_new)
    np.testing.assert_allclose(weighted, without, atol=1e-4)


def test_bad_class_weights(split):
    X, y, _, _ = split
    with pytest.raises(
        ValueError, match=r"class_weight of 'delivery' is -1\.0: weights must be finite and >= 0"
    ):
        MiniLMClassifier(class_weight={"delivery": -1.0}).fit(X, y)


def test_predictions_use_the_settings_of_the_fit(split):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable="head", random_state=0).fit(X, y)
    before = classifier.predict_proba(X_new)
    assert set(classifier.settings_) == {"pooling", "normalize", "prompt", "max_length", "long_text"}
    classifier.set_params(prompt="other: ", pooling="cls")
    np.testing.assert_array_equal(classifier.predict_proba(X_new), before)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        MiniLMClassifier().predict(["a"])


def test_another_checkpoint_than_at_fit_is_refused(split, transformers_folder):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable="head", random_state=0).fit(X, y)
    classifier.set_params(model=transformers_folder, max_length=64)
    with pytest.raises(ValueError, match="other weights"):
        classifier.predict(X_new)


def test_another_architecture_trains_its_head_only(split, distilbert_folder):
    X, y, _, _ = split
    options = dict(max_length=64, random_state=0)
    with pytest.raises(ValueError, match=r"cannot be fine-tuned here: its architecture is 'distilbert'"):
        MiniLMClassifier(distilbert_folder, **options).fit(X, y)
    head = MiniLMClassifier(distilbert_folder, trainable="head", **options).fit(X, y)
    assert head.predict(X).shape == (40,)


def test_grid_search_and_cross_validation(split):
    from sklearn.model_selection import GridSearchCV, cross_val_score

    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable="head", random_state=0)
    options = dict(cv=2, error_score="raise")
    grid = GridSearchCV(classifier, {"epochs": [1, 5], "init_head": ["probe", "random"]}, **options).fit(X, y)
    scores = grid.cv_results_["mean_test_score"]
    assert len(scores) == 4
    assert np.isfinite(scores).all()
    assert grid.score(X, y) > 0.8  # the best one has learned all of it
    assert cross_val_score(classifier, X, y, **options).mean() > 0.25  # by chance 0.125


def test_balanced_weights_count(split):
    X, y, _, _ = split
    y = np.where(y == "delivery", "delivery", "other")  # 5 and 35
    options = dict(trainable="head", epochs=2, random_state=0)
    balanced = MiniLMClassifier(class_weight="balanced", **options).fit(X, y)
    by_row = MiniLMClassifier(**options).fit(X, y, sample_weight=compute_sample_weight("balanced", y))
    np.testing.assert_allclose(balanced.coef_, by_row.coef_, atol=1e-6)
    assert np.abs(balanced.coef_ - MiniLMClassifier(**options).fit(X, y).coef_).max() > 1e-3


def test_the_head_of_pairs_is_refitted_too(texts):
    X, y = list(zip(texts[::2], texts[1::2], strict=True)), np.arange(32) % 2
    options = dict(trainable=1, epochs=1, random_state=0)
    default, never, always = (
        MiniLMClassifier(**options, **refit).fit(X, y).coef_
        for refit in ({}, {"refit_head": False}, {"refit_head": True})
    )
    np.testing.assert_array_equal(default, always)
    assert not np.array_equal(default, never)


@pytest.mark.slow
def test_the_process_may_have_another_default_dtype_or_device(split, reset_torch_defaults):
    X, y, X_new, _ = split
    options = dict(epochs=1, random_state=0, precision="fp32")

    def vectors_and_probabilities():
        release_models()
        clear_cache()
        vectors = MiniLMEncoder(cache=None, device="cpu").transform(X_new[::4])
        classifiers = [
            MiniLMClassifier(trainable=trainable, device="cpu", **options) for trainable in (1, "all")
        ]
        return [vectors, *(one.fit(X[::4], y[::4]).predict_proba(X_new[:8]) for one in classifiers)]

    expected = vectors_and_probabilities()
    for change in (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_default_device("meta"),
    ):
        change()
        for found, known in zip(vectors_and_probabilities(), expected, strict=True):
            np.testing.assert_array_equal(found, known)
        reset_torch_defaults()


needs_string_dtype = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy before 2 has no StringDType"
)


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([0, 1], object),
        ([False, True], object),
        pytest.param(["p", "q"], "T", marks=needs_string_dtype),
        ([[0, 1], [1, 0]], int),
        ([[0, 1], [1, 0]], object),
    ],
)
def test_score_reads_y_in_every_container_that_fit_takes(labels, dtype):
    X = ["a parcel", "an invoice"] * 6
    y = np.array(labels * 6, dtype=dtype)
    model = MiniLMClassifier(trainable="head", random_state=0).fit(X, y)
    assert model.score(X, y) == 1
    assert model.score(X[:2], y[:2], sample_weight=[1, 0]) == 1
    assert cross_val_score(model, X, y, cv=KFold(2)).tolist() == [1, 1]


def test_validation_counts_rows_alike_however_they_are_set_aside(split):
    X, y = np.array(split[0], dtype=object), split[1]
    options = dict(
        trainable="head",
        epochs=2,
        batch_size=64,  # one step an epoch: the order of the rows does not count
        random_state=0,
        early_stopping=True,
        class_weight={label: 10.0 ** -(number % 4) for number, label in enumerate(np.unique(y))},
    )
    drawn = MiniLMClassifier(validation_fraction=0.4, **options).fit(X, y)
    training, validation = train_test_split(
        np.arange(len(X)), test_size=0.4, stratify=y, random_state=np.random.RandomState(0)
    )
    training, validation = np.sort(training), np.sort(validation)
    given = MiniLMClassifier(**options).fit(
        X[training], y[training], X_val=X[validation], y_val=y[validation]
    )
    scores = [[epoch["validation_score"] for epoch in model.history_] for model in (drawn, given)]
    assert scores[0] == pytest.approx(scores[1])
    assert drawn.history_[drawn.best_epoch_ - 1]["validation_score"] == pytest.approx(
        drawn.score(X[validation], y[validation])
    )


def test_an_interrupt_after_the_last_epoch_loses_nothing(monkeypatch, split):
    def interrupt_once(weights, calls=[]):  # noqa: B006
        if not calls:
            calls.append(1)
            raise KeyboardInterrupt
        return arrays_digest(weights)

    monkeypatch.setattr("skminilm._trained_network.arrays_digest", interrupt_once)
    with pytest.warns(UserWarning, match="interrupted"):
        model = MiniLMClassifier(trainable=1, epochs=1).fit(split[0][:8], split[1][:8])
    assert model.predict(split[2][:2]).shape == (2,)


@pytest.mark.parametrize("trainable", ["head", 1, "encoder"])
def test_fit_inside_inference_mode(split, trainable):
    X, y, X_new, _ = split
    options = dict(trainable=trainable, epochs=1, random_state=0)
    expected = MiniLMClassifier(**options).fit(X[:8], y[:8]).predict_proba(X_new[:4])
    release_models()
    clear_cache()
    with torch.inference_mode():
        found = MiniLMClassifier(**options).fit(X[:8], y[:8]).predict_proba(X_new[:4])
    np.testing.assert_array_equal(found, expected)


def test_going_on_from_a_memory_map_is_quiet(split, tmp_path):
    X, y = split[:2]
    joblib.dump(MiniLMClassifier(trainable="head", epochs=1).fit(X, y), tmp_path / "model.joblib")
    model = joblib.load(tmp_path / "model.joblib", mmap_mode="r").set_params(warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y)
    assert model.n_iter_ == 2


@pytest.mark.parametrize(
    ("parameters", "fit_options", "message"),
    [
        ({"class_weight": {"a": "2", "b": 1}}, {}, "class_weight of 'a' is '2'"),
        ({"class_weight": {"a": None, "b": 1}}, {}, "class_weight of 'a' is None"),
        ({}, {"sample_weight": ["a", "b"]}, "sample_weight holds what is not a number"),
        ({}, {"sample_weight": [1, 10**400]}, "sample_weight holds what is not a number"),
        (
            {},
            {"sample_weight": np.array(["2026-01-01", "2026-01-02"], "M8[D]")},
            r"sample_weight .*\(dates and times",
        ),
        ({}, {"sample_weight": "ab"}, "sample_weight is a str: 'ab'. Expected one weight per text"),
        ({"prompt": "\ud800"}, {}, "prompt=.*lone surrogate"),
        ({"max_length": 3, "prompt": "query: "}, {}, "leaves no room for text behind the prompt 'query: '"),
    ],
)
def test_bad_values_are_named(parameters, fit_options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MiniLMClassifier(trainable="head", **parameters).fit(["x", "y"], ["a", "b"], **fit_options)


def test_a_warm_start_on_a_part_without_a_class_says_how_it_goes_on():
    model = MiniLMClassifier(trainable="head", warm_start=True, epochs=1).fit(["x", "y", "z"], [0, 1, 2])
    with pytest.raises(ValueError, match=r"y lacks \[2\] .*with sample_weight 0"):
        model.fit(["x", "y"], [0, 1])
    with pytest.raises(ValueError, match=r"has \[3\] besides\. Set warm_start=False"):
        model.fit(["x", "y"], [0, 3])
    model.fit(["x", "y", "anything"], [0, 1, 2], sample_weight=[1, 1, 0])
    assert model.classes_.tolist() == [0, 1, 2]


def test_a_warm_start_tells_labels_from_columns():
    model = MiniLMClassifier(trainable="head", warm_start=True).fit(["x", "y"], [0, 1])
    with pytest.raises(ValueError, match="had one label per text, and y has several columns"):
        model.fit(["x", "y"], [[0, 1], [1, 0]])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_head_is_a_logistic_regression_of_weights_of_mean_1(split, n_classes):
    X, y, X_new, _ = split
    kept = np.isin(y, np.unique(y)[:n_classes])
    X, y = [text for text, k in zip(X, kept, strict=True) if k], y[kept]
    weights = np.where(np.arange(len(y)) == 0, 100.0, 1.0)
    options = dict(trainable="head", epochs=1, head_learning_rate=1e-12, precision="fp32", random_state=0)
    found = MiniLMClassifier(**options).fit(X, y, sample_weight=weights)
    probe = LogisticRegression(C=100, max_iter=2000, tol=1e-6)
    probe.fit(found.encode(X), y, sample_weight=weights / weights.mean())
    expected = probe.predict_proba(found.encode(X_new))
    np.testing.assert_allclose(found.predict_proba(X_new), expected, atol=1e-2)


def test_the_more_texts_the_stronger_the_penalty_of_each(requests):
    X, y = requests.data[:500], requests.target[:500]
    found = MiniLMClassifier(trainable="head", epochs=1, head_learning_rate=1e-12, random_state=0).fit(X, y)
    expected = LogisticRegression(C=20, max_iter=2000, tol=1e-6).fit(found.encode(X), y)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(found.encode(X)), atol=1e-2)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_thousand_classes_of_few_texts_are_told_apart(most):
    random = np.random.default_rng(0)
    n_classes, size = 1000, 64
    # As of the checkpoint: all vectors have much in common.
    centers = 3 * random.standard_normal(size) + random.standard_normal((n_classes, size))
    y = np.repeat(np.arange(n_classes), random.integers(1, most + 1, n_classes))

    def vectors(y):
        found = centers[y] + 0.3 * random.standard_normal((len(y), size))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    targets = ClassTargets(y, len(y))
    coef, intercept = targets.fit_head(vectors(y), targets.values, np.ones(len(y)))
    y_new = np.arange(n_classes)
    assert np.mean((vectors(y_new) @ coef.T + intercept).argmax(axis=1) == y_new) >= 0.9


@pytest.mark.parametrize(("n_texts", "n_epochs"), [(32, 10), (320, 6), (321, 6), (640, 3), (1_000_000, 3)])
def test_auto_is_60_steps_in_3_to_10_epochs(n_texts, n_epochs):
    assert MiniLMClassifier()._n_epochs(n_texts) == n_epochs


def test_a_warm_start_from_another_checkpoint_is_refused(split, two_folders):
    X, y, _, _ = split
    first, second = two_folders
    classifier = MiniLMClassifier(first, trainable="head", epochs=1, max_length=64, warm_start=True)
    classifier.fit(X, y)
    with pytest.raises(ValueError, match="had another model or revision"):
        classifier.set_params(model=second).fit(X, y)


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_predictions_in_parts_are_the_same_and_have_one_bar(english, monkeypatch, capsys, kind):
    from skminilm import _fine_tuned

    X, names = english[0][::2], english[1][::2]
    classes, y = np.unique(names, return_inverse=True)
    if kind == "labels":
        y = np.eye(len(classes), dtype=int)[y]
    model = MiniLMClassifier(trainable="head", epochs=1, precision="fp32", random_state=0).fit(X, y)
    texts = [*X, *X[:5]]  # some come twice
    methods = ("decision_function", "predict_proba", "predict_log_proba", "predict")
    whole = {method: getattr(model, method)(texts) for method in methods}
    monkeypatch.setattr(_fine_tuned, "_PART_BYTES", 4 * sum(model.coef_.shape) * 7)
    model.set_params(verbose=1)
    for method in methods:
        clear_cache()
        capsys.readouterr()
        found = getattr(model, method)(texts)
        assert found.dtype == whole[method].dtype
        np.testing.assert_allclose(found, whole[method], rtol=1e-5, atol=1e-6)
        shown = capsys.readouterr().err
        assert shown.count("encode:   0%") == 1  # which each bar shows once
        assert f"{len(set(X))}/{len(set(X))}" in shown
