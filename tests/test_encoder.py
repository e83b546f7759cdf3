import pickle
import tracemalloc
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import edit_json
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from skminilm import MiniLMClassifier, MiniLMEncoder, clear_cache
from skminilm.engine.packed_model import PackedModel


def test_shape_dtype_and_norm(texts):
    vectors = MiniLMEncoder().transform(texts)
    assert vectors.shape == (64, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_translations_are_nearest(requests):
    """In every language most requests lie nearest to their English original."""
    vectors = MiniLMEncoder().transform(requests.data[::2]).reshape(16, 32, 384)
    for language, own in zip(requests.languages[::64], vectors, strict=True):
        nearest = (own @ vectors[0].T).argmax(axis=1)
        assert (nearest == np.arange(32)).mean() > 0.75, language


def test_pipeline_learns_from_english_and_reads_other_languages(requests):
    texts, y = np.array(requests.data, dtype=object), requests.target
    is_new = (requests.groups % 8 >= 5) & np.isin(requests.languages, ["en", "ru", "zh", "sw"])
    train = (requests.languages == "en") & (requests.groups % 8 < 5)
    pipeline = Pipeline([("enc", MiniLMEncoder()), ("clf", LogisticRegression(C=10))])
    pipeline.fit(texts[train], y[train])
    assert pipeline.score(texts[is_new], y[is_new]) > 0.5  # by chance 0.125


def test_stateless(texts):
    encoder = MiniLMEncoder()
    before = encoder.transform(texts[:3])
    np.testing.assert_array_equal(encoder.fit(texts[3:]).transform(texts[:3]), before)
    np.testing.assert_array_equal(clone(encoder).fit_transform(texts[:3]), before)


@pytest.mark.parametrize("empty", ["", " ", "\n\t \u3000"])
def test_empty_texts_have_a_finite_vector(empty):
    vectors = MiniLMEncoder().transform([empty, "word"])
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors[0], MiniLMEncoder().transform([""])[0])


def test_sentence_pairs_are_encoded_together(texts, reference):
    pairs = pd.DataFrame({"a": texts[:4], "b": texts[4:8]})
    vectors = MiniLMEncoder().transform(pairs)
    swapped = MiniLMEncoder().transform(pairs[["b", "a"]])
    joined = MiniLMEncoder().transform((pairs.a + " " + pairs.b).tolist())
    assert vectors.shape == (4, 384)
    assert np.abs(vectors - swapped).max() > 1e-3
    assert np.abs(vectors - joined).max() > 1e-3


@pytest.mark.parametrize("estimator", [MiniLMEncoder(), MiniLMClassifier(trainable="head", epochs=1)])
def test_a_prompt_before_a_prompt_is_warned_of(estimator):
    X, y = ["query: good", "query: bad", "passage: fine"], [1, 0, 1]
    call = estimator.transform if isinstance(estimator, MiniLMEncoder) else lambda X: estimator.fit(X, y)
    with pytest.warns(UserWarning, match=r"3 of the first 3 texts begin with a prompt .*give prompt=None"):
        call(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MiniLMEncoder(prompt=None).transform(X)
        MiniLMEncoder(prompt="query: ").transform(["good", "bad"])
        MiniLMEncoder().transform(["query: good", "bad"])


def test_prompt_and_normalize(texts):
    prompted = MiniLMEncoder(prompt="query: ", normalize=False).transform(texts[:4])
    by_hand = MiniLMEncoder(prompt=None, normalize=False).transform(["query: " + t for t in texts[:4]])
    np.testing.assert_array_equal(prompted, by_hand)
    unit = MiniLMEncoder(prompt="query: ").transform(texts[:4])
    np.testing.assert_allclose(unit, prompted / np.linalg.norm(prompted, axis=1, keepdims=True), atol=1e-6)


def test_one_warning_says_how_many_texts_were_cut(texts):
    X = [texts[0] * 3, "short", texts[1] * 5, texts[1] * 5]
    for _ in range(2):  # the second time the vectors come from the cache
        with pytest.warns(UserWarning, match=r"3 of 4 texts have more than max_length=16 tokens") as caught:
            MiniLMEncoder(max_length=16).transform(X)
        assert len(caught) == 1
        assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.*max_length=64")
def test_100_000_rows_of_1_000_texts(requests, transformers_folder, encoded):
    encoder = MiniLMEncoder(transformers_folder, max_length=64)
    different = encoder.transform(requests.data)
    encoded.clear()
    peaks = []
    for n in (50_000, 100_000):
        clear_cache()
        X = np.resize(np.array(requests.data, dtype=object), n)
        tracemalloc.start()
        try:
            vectors = encoder.transform(X)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(vectors, np.resize(different, (n, 32)))
    assert len(encoded) == 2 * len(set(requests.data))
    assert peaks[1] < 2.2 * peaks[0]


def test_truncated_text_equals_its_beginning():
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        cut = MiniLMEncoder(max_length=6, prompt=None).transform(["one two three four five six"])
    np.testing.assert_array_equal(cut, MiniLMEncoder(prompt=None).transform(["one two three four"]))


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("bare", TypeError, "X is a bare str"),
        ([], ValueError, "X is empty"),
        (["a", None], ValueError, "row 1 is None"),
        (["a", 1], TypeError, "row 1 is 1"),
        ([("a", "b", "c")], ValueError, "X has 3 columns"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform", "fit_transform"])
def test_bad_x(X, error, message, method):
    with pytest.raises(error, match=message):
        getattr(MiniLMEncoder(), method)(X)


def test_missing_as_empty():
    encoder = MiniLMEncoder(missing="empty")
    np.testing.assert_array_equal(encoder.transform([None, "a"]), encoder.transform(["", "a"]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pooling": "median"}, "pooling.*must be"),
        ({"normalize": "yes"}, "normalize.*must be"),
        ({"max_length": 513}, "max_length=513 is more than the 512 positions"),
        ({"max_length": 0}, "max_length.*must be"),
        ({"precision": "int3"}, "precision.*must be"),
        ({"device": "abacus"}, "device='abacus' is not known"),
        ({"cache": "yes"}, "cache='yes' is not known: use 'memory', None, or a folder"),
        ({"cache": ""}, "cache='' is not known: use 'memory', None, or a folder"),
        ({"cache": 1}, "cache.*must be"),
        ({"long_text": "middle"}, "long_text.*must be"),
        ({"backend": "onnx"}, "backend.*must be"),
        ({"calibration_texts": ["a"]}, "calibration_texts are for precision='int8'"),
        ({"missing": "drop"}, "missing.*must be"),
        ({"batch_tokens": 0}, "batch_tokens.*must be"),
        ({"batch_tokens": True}, "batch_tokens.*must be"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_bad_parameters(parameters, message, method):
    with pytest.raises(ValueError, match=message):
        getattr(MiniLMEncoder(**parameters), method)(["a"])


def test_fit_changes_no_parameter(texts):
    encoder = MiniLMEncoder()
    before = encoder.get_params()
    encoder.fit(texts)
    assert encoder.get_params() == before
    assert set(vars(encoder)) - set(before) == {"fingerprint_", "defaults_", "hidden_size_", "n_features_in_"}


def test_persistence_is_small_and_exact(texts, tmp_path):
    pipeline = make_pipeline(MiniLMEncoder(), LogisticRegression()).fit(texts, np.arange(64) % 8)
    joblib.dump(pipeline, tmp_path / "pipeline.joblib")
    assert (tmp_path / "pipeline.joblib").stat().st_size < 100_000
    loaded = joblib.load(tmp_path / "pipeline.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(texts), pipeline.predict_proba(texts))


def test_other_weights_than_at_fit_are_refused(transformers_folder, tmp_path, texts):
    import shutil

    folder = shutil.copytree(transformers_folder, tmp_path / "model")
    encoder = MiniLMEncoder(folder).fit(texts)
    saved = pickle.dumps(encoder)
    encoder.transform(texts[:2])
    edit_json(folder / "config.json", layer_norm_eps=1e-3)
    for stale in (encoder, pickle.loads(saved)):
        with pytest.raises(
            ValueError, match=r"other weights, tokenizer or configuration here .* Fit it again"
        ):
            stale.transform(texts[:2])
    encoder.fit(texts).transform(texts[:2])


def test_auto_means_what_it_meant_at_fit(texts):
    """A saved encoder does not change with the presets of a later release."""
    encoder = MiniLMEncoder().fit(texts)
    encoder.defaults_["prompt"] = "earlier: "
    expected = MiniLMEncoder(prompt="earlier: ").transform(texts[:2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).transform(texts[:2]), expected)
    assert encoder.fit(texts).defaults_["prompt"] != "earlier: "


def test_output_containers_and_names(texts):
    encoder = MiniLMEncoder()
    names = encoder.get_feature_names_out()
    assert names[0] == "minilmencoder0"
    assert names[-1] == "minilmencoder383"
    frame = pd.DataFrame({"text": texts[:3]}, index=[7, 8, 9])
    out = MiniLMEncoder().set_output(transform="pandas").fit_transform(frame)
    assert out.index.tolist() == [7, 8, 9]
    assert out.columns.tolist() == names.tolist()
    np.testing.assert_array_equal(out.to_numpy(), encoder.transform(texts[:3]))
    polars = MiniLMEncoder().set_output(transform="polars").fit_transform(frame)
    assert polars.shape == (3, 384)


def test_column_transformer(texts):
    from sklearn.compose import make_column_transformer

    frame = pd.DataFrame({"text": texts[:4], "size": [1.0, 2, 3, 4]})
    for column in ("text", ["text"]):
        out = make_column_transformer((MiniLMEncoder(), column), remainder="passthrough").fit_transform(frame)
        assert out.shape == (4, 385)


def test_a_grid_over_pooling_changes_the_vectors(english):
    from sklearn.model_selection import GridSearchCV

    X, y = english
    pipeline = Pipeline([("enc", MiniLMEncoder()), ("clf", LogisticRegression(C=10))])
    grid = GridSearchCV(
        pipeline, {"enc__pooling": ["mean", "cls"], "enc__normalize": [True, False]}, cv=2
    ).fit(X, y)
    assert len(set(grid.cv_results_["mean_test_score"])) > 1


def test_another_architecture_goes_through_sentence_transformers(distilbert_folder, texts, capsys):
    from sentence_transformers import SentenceTransformer

    vectors = MiniLMEncoder(distilbert_folder, precision="fp32", verbose=1).transform(texts)
    captured = capsys.readouterr()
    assert (
        "runs through sentence-transformers: its architecture is 'distilbert'" in captured.out + captured.err
    )
    expected = SentenceTransformer(str(distilbert_folder), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    with pytest.raises(ValueError, match="max_length=500 is more than the 64 tokens"):
        MiniLMEncoder(distilbert_folder, max_length=500).transform(texts)
    with pytest.raises(ValueError, match="pooling='cls' cannot be chosen"):
        MiniLMEncoder(distilbert_folder, pooling="cls").transform(texts)
    with pytest.raises(ValueError, match="Sentence pairs need a BERT-shaped checkpoint"):
        MiniLMEncoder(distilbert_folder).transform([("a", "b")])


def test_another_architecture_has_no_room_behind_a_long_prompt(distilbert_folder):
    options = dict(cache=None, max_length=4)
    with pytest.raises(ValueError, match="leaves no room for text behind the prompt"):
        MiniLMEncoder(distilbert_folder, prompt="where is my parcel: ", **options).transform(["good", "bad"])
    with pytest.raises(ValueError, match="lone surrogate"):
        MiniLMEncoder(distilbert_folder, prompt="\ud800", **options).transform(["good"])


@pytest.fixture(scope="module")
def foreign_folder(make_sentence_transformers_folder, distilbert_folder):
    """Another architecture with a default prompt, normalisation and, behind them, a Dense module."""
    return make_sentence_transformers_folder(base=distilbert_folder, prompt="query: ", dense=16)


@pytest.mark.filterwarnings("ignore:.*max_length=24")
def test_prompt_and_normalisation_on_another_architecture(foreign_folder, texts):
    plain = MiniLMEncoder(foreign_folder, precision="bf16").fit_transform(texts)
    assert plain.shape == (64, 16)
    assert len(MiniLMEncoder(foreign_folder).get_feature_names_out()) == 16
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-6)
    unprompted = MiniLMEncoder(foreign_folder, prompt=None, precision="bf16").transform(texts)
    assert np.abs(plain - unprompted).max() > 1e-3
    with pytest.raises(ValueError, match="normalize=False cannot be chosen"):
        MiniLMEncoder(foreign_folder, normalize=False).transform(texts)


@pytest.mark.filterwarnings("ignore:.*max_length=")
def test_threads_do_not_mix_the_limits_of_another_architecture(foreign_folder, texts):
    from concurrent.futures import ThreadPoolExecutor

    def encode(max_length):
        encoder = MiniLMEncoder(foreign_folder, max_length=max_length, precision="fp32", cache=None)
        return encoder.transform(texts[:8])

    expected = {length: encode(length) for length in (8, 24)}
    with ThreadPoolExecutor(4) as threads:
        lengths = [8, 24] * 10
        for length, found in zip(lengths, threads.map(encode, lengths), strict=True):
            np.testing.assert_allclose(found, expected[length], atol=1e-6)


def test_quiet_by_default_progress_on_request(texts, capfd):
    MiniLMEncoder(cache=None).transform(texts)
    assert capfd.readouterr() == ("", "")
    MiniLMEncoder(cache=None, verbose=1).transform(texts)
    captured = capfd.readouterr()
    assert "64/64" in captured.err
    assert captured.out == ""


def test_long_text_by_head_and_tail():
    text = " ".join("abcdefgh")
    encoder = MiniLMEncoder(max_length=6, prompt=None, long_text="head_tail")
    with pytest.warns(UserWarning, match="1 of 1 texts have more than max_length=6 .* cut in the middle"):
        cut = encoder.transform([text])
    np.testing.assert_array_equal(cut, MiniLMEncoder(prompt=None).transform(["a f g h"]))
    assert (encoder.n_truncated_, encoder.max_tokens_) == (1, 10)


@pytest.mark.parametrize("normalize", [True, False])
def test_long_text_by_the_mean_of_its_windows(normalize, recwarn):
    text = " ".join("abcdefghij")
    options = dict(prompt=None, normalize=normalize, precision="fp32")
    encoder = MiniLMEncoder(max_length=6, long_text="chunk_mean", **options)
    found = encoder.transform(["short", text, "x y"])
    parts = MiniLMEncoder(**{**options, "normalize": False}).transform(["a b c", "d e f", "g h i j"])
    expected = (np.array([5, 5, 6])[:, None] * parts).sum(0) / 16
    if normalize:
        expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(found[1], expected, atol=2e-5)
    np.testing.assert_allclose(found[[0, 2]], MiniLMEncoder(**options).transform(["short", "x y"]), atol=2e-5)
    assert (encoder.n_truncated_, encoder.max_tokens_) == (1, 12)
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:.*long_text='truncate'", "ignore:.*are cut")
def test_a_very_long_text_has_a_vector_near_that_of_its_sentences(requests):
    sentences = requests.data[:64] + requests.data[-64:]  # in two languages
    mean = MiniLMEncoder().transform(sentences).mean(axis=0)
    cosines = {}
    for long_text in ("truncate", "chunk_mean"):
        encoder = MiniLMEncoder(long_text=long_text)
        cosines[long_text] = (encoder.transform([" ".join(sentences)]) @ mean / np.linalg.norm(mean))[0]
        assert encoder.max_tokens_ > 1024
    assert cosines["chunk_mean"] > cosines["truncate"] + 0.01


def test_long_text_is_not_for_pairs():
    with pytest.raises(ValueError, match="long_text='chunk_mean' is for single texts"):
        MiniLMEncoder(long_text="chunk_mean").transform([("a", "b")])


def test_truncation_figures_are_there_after_a_call_and_change_no_attribute(texts):
    encoder = MiniLMEncoder(max_length=16)
    with pytest.raises(AttributeError, match="n_truncated_ is there after the first transform"):
        assert encoder.n_truncated_ == 0
    before = dict(vars(encoder))
    encoder.transform(["short"])
    assert encoder.n_truncated_ == 0
    with pytest.warns(UserWarning, match="2 of 3"):
        encoder.transform([texts[0] * 3, "short", texts[1] * 5])
    assert encoder.n_truncated_ == 2
    assert encoder.max_tokens_ > 16
    assert vars(encoder) == before


def test_progress_counts_texts_also_where_they_are_cut_into_windows(capsys):
    MiniLMEncoder(max_length=6, long_text="chunk_mean", verbose=1, cache=None).transform(
        ["a b c d e f g h"] * 3
    )
    assert "1/1" in capsys.readouterr().err
    MiniLMEncoder(verbose=0, cache=None).transform(["quiet"])
    assert capsys.readouterr().err == ""


def test_a_text_of_exactly_the_limit_is_not_cut(recwarn):
    encoder = MiniLMEncoder(max_length=10, prompt=None)
    encoder.transform(["a b c d e f g h"])
    assert (encoder.n_truncated_, encoder.max_tokens_) == (0, 10)
    assert not recwarn.list


@pytest.mark.filterwarnings("error")
def test_what_was_cut_is_known_where_the_warning_is_an_error():
    encoder = MiniLMEncoder(max_length=10, prompt=None)
    with pytest.raises(UserWarning, match="1 of 1 texts have more than max_length=10 tokens"):
        encoder.transform(["a b c d e f g h i"])
    assert (encoder.n_truncated_, encoder.max_tokens_) == (1, 11)


def test_batch_tokens_bounds_what_is_computed_at_once(texts, monkeypatch):
    packs = []
    original = PackedModel.start

    def watching(self, batch, rows, *args):
        packs.append(int(batch.lengths[rows].sum()))
        return original(self, batch, rows, *args)

    monkeypatch.setattr(PackedModel, "start", watching)
    expected = MiniLMEncoder(precision="fp32", cache=None).transform(texts)
    assert max(packs) > 200
    packs.clear()
    found = MiniLMEncoder(precision="fp32", cache=None, batch_tokens=200).transform(texts)
    assert max(packs) <= 200
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("local", [True, False])
def test_local_files_only_arrives(monkeypatch, local):
    asked = []

    def download(repo_id, revision, *, local_files_only, settings_known):
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr("skminilm.checkpoints.hub.download", download)
    with pytest.raises(OSError, match="not here"):
        MiniLMEncoder("somebody/nothing", local_files_only=local).transform(["a"])
    assert asked == [local]


def test_tokens_of_the_prompt_count_on_another_architecture(distilbert_folder):
    encoder = MiniLMEncoder(distilbert_folder, prompt="where is the card: ")
    encoder.transform(["my parcel"])
    with_prompt = encoder.max_tokens_
    plain = MiniLMEncoder(distilbert_folder, prompt=None)
    plain.transform(["where is the card: my parcel"])
    assert with_prompt == plain.max_tokens_


@pytest.mark.parametrize("prompt", ["query", "passage", "document"])
def test_the_name_of_a_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match=f"looks like the name of a prompt: .*prompt='{prompt}: '"):
        MiniLMEncoder(prompt=prompt).transform(["a"])
    with pytest.raises(ValueError, match="looks like the name of a prompt"):
        MiniLMClassifier(prompt=prompt).fit(["a", "b"], [0, 1])
