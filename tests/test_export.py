"""Networks that other packages read: their vectors are those of the estimator."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS, edit_json, move_into_module, tiny_bert
from sentence_transformers import SentenceTransformer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from skminilm import MiniLMClassifier, MiniLMEncoder, MiniLMRegressor

X, Y = ["good", "bad", "fine", "awful"], [1, 0, 1, 0]
OPTIONS = {"epochs": 1, "max_length": 24, "precision": "fp32", "random_state": 0}


def read_by_others(folder):
    """Return the vectors that sentence-transformers and MiniLMEncoder give."""
    yield SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    yield MiniLMEncoder(folder, precision="fp32").transform(TEXTS)


@pytest.mark.slow
def test_the_bundled_network_goes_to_sentence_transformers(tmp_path):
    classifier = MiniLMClassifier(trainable=1, save_weights="full", **OPTIONS).fit(X, Y)
    classifier.export(tmp_path / "network")
    for vectors in read_by_others(tmp_path / "network"):
        np.testing.assert_allclose(vectors, classifier.encode(TEXTS), atol=1e-5)
    shutil.rmtree(tmp_path / "network")  # half a gigabyte


@pytest.mark.parametrize(
    ("trainable", "save_weights"),
    [(1, "delta"), ("all", "delta"), ("encoder", "fp16"), ("head", "delta"), ("lora", "delta")],
)
def test_whatever_was_trained(tmp_path, transformers_folder, trainable, save_weights):
    if trainable == "lora":
        pytest.importorskip("peft")
    regressor = MiniLMRegressor(
        transformers_folder, trainable=trainable, save_weights=save_weights, **OPTIONS
    )
    regressor.fit(X, [0.1, 0.2, 0.3, 0.5]).export(tmp_path / "network")
    for vectors in read_by_others(tmp_path / "network"):
        np.testing.assert_allclose(vectors, regressor.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_other_vocabularies_poolings_and_prompts(tmp_path, transformers_folder, pooling):
    classifier = MiniLMClassifier(transformers_folder, pooling=pooling, prompt="query: ", **OPTIONS)
    classifier.fit(X, Y).export(tmp_path / "network")
    for vectors in read_by_others(tmp_path / "network"):
        np.testing.assert_allclose(vectors, classifier.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("bert", None), ("bert", {"model_max_length": 60}), ("xlm-roberta", {"model_max_length": 60})],
)
def test_a_vocabulary_of_which_no_file_says_whose_it_is(tmp_path, xlmr_folder, kind, settings):
    """Beside a network of the type BERT transformers would take it for BERT's own."""
    folder = shutil.copytree(xlmr_folder, tmp_path / "model")
    edit_json(folder / "config.json", model_type=kind, pad_token_id=1)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    classifier = MiniLMClassifier(folder, **OPTIONS).fit(X, Y)
    classifier.export(tmp_path / "network")
    for vectors in read_by_others(tmp_path / "network"):
        np.testing.assert_allclose(vectors, classifier.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("folder", ["transformers_folder", "xlmr_folder"])
def test_the_network_and_the_tokenizer_pad_with_the_same_token(tmp_path, folder, request):
    """Where they differ the token that the network takes for padding, such as <s>, is not trained any further."""
    MiniLMEncoder(request.getfixturevalue(folder)).export(tmp_path / "network")
    model = SentenceTransformer(str(tmp_path / "network"), device="cpu")
    embeddings = model[0].auto_model.get_input_embeddings()
    assert embeddings.padding_idx == model.tokenizer.pad_token_id
    config = json.loads((tmp_path / "network" / "config.json").read_text())
    assert config["transformers_version"] == "4.48.0"  # without one 4.57 advises fix_mistral_regex=True


@pytest.mark.skipif(os.name == "nt", reason="it has other rights")
def test_all_files_may_be_read_by_the_same(tmp_path, transformers_folder, monkeypatch):
    (tmp_path / "network").mkdir()
    monkeypatch.chdir(tmp_path / "network")
    MiniLMClassifier(transformers_folder, **OPTIONS).fit(X, Y).export(".")
    assert len({path.stat().st_mode for path in Path.cwd().iterdir() if path.is_file()}) == 1


def test_without_the_files_beside_a_vocabulary(tmp_path, transformers_folder):
    folder = shutil.copytree(transformers_folder, tmp_path / "model")
    classifier = MiniLMClassifier(folder, save_weights="full", **OPTIONS).fit(X, Y)
    with pytest.raises(ValueError, match="kept without what transformers needs"):
        classifier.export(tmp_path / "network")
    assert not (tmp_path / "network").exists()


def test_what_cannot_be_exported(tmp_path, distilbert_folder):
    pairs = MiniLMClassifier(trainable="head", **OPTIONS).fit([("a", "b"), ("c", "d")], [0, 1])
    with pytest.raises(ValueError, match=r"pooling='pair\+texts'"):
        pairs.export(tmp_path / "network")
    foreign = MiniLMClassifier(distilbert_folder, trainable="head", **OPTIONS).fit(X, Y)
    with pytest.raises(ValueError, match="Only the head was trained"):
        foreign.export(tmp_path / "network")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path, transformers_folder, monkeypatch):
    classifier = MiniLMClassifier(transformers_folder, **OPTIONS).fit(X, Y)
    (tmp_path / "network").mkdir()  # an empty folder may be filled
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        classifier.export(tmp_path / "network")
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
    monkeypatch.undo()
    classifier.export(tmp_path / "network")
    before = sorted(path.name for path in (tmp_path / "network").iterdir())
    with pytest.raises(FileExistsError, match="is there already"):
        classifier.export(tmp_path / "network")
    assert sorted(path.name for path in (tmp_path / "network").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_long_texts_are_cut_where_they_were_in_training(tmp_path, transformers_folder):
    classifier = MiniLMClassifier(
        transformers_folder, epochs=1, max_length=24, precision="fp32", random_state=0
    )
    classifier.fit(["good", "bad"], [1, 0]).export(tmp_path / "network")
    with pytest.warns(UserWarning, match="max_length=24"):
        expected = classifier.encode(["where is it? " * 10])
    vectors = SentenceTransformer(str(tmp_path / "network"), device="cpu").encode(["where is it? " * 10])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_tokenizer_in_a_folder_of_sentence_transformers(tmp_path, transformers_folder):
    folder = move_into_module(shutil.copytree(transformers_folder, tmp_path / "model"))
    regressor = MiniLMRegressor(folder, epochs=1, max_length=24, precision="fp32", random_state=0)
    regressor.fit(["good", "bad", "fine"], [0.1, 0.2, 0.5]).export(tmp_path / "network")
    vectors = SentenceTransformer(str(tmp_path / "network"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors, regressor.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"byte_fallback": True, "vocab_size": 2000},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity"},
        {},
    ],
    ids=str,
)
def test_vocabularies_that_tokenizer_json_cannot_say(tmp_path, requests, options):
    prefix = tmp_path / "vocabulary"
    common = {"vocab_size": 1500, "character_coverage": 0.98, "minloglevel": 2}
    SentencePieceTrainer.train(
        sentence_iterator=iter(requests.data), model_prefix=str(prefix), **(common | options)
    )
    folder, vocabulary = tmp_path / "model", prefix.with_suffix(".model")
    n_pieces = SentencePieceProcessor(model_file=str(vocabulary)).get_piece_size()
    tiny_bert(n_pieces + 2).save_pretrained(folder)
    shutil.copy(vocabulary, folder / "sentencepiece.bpe.model")
    regressor = MiniLMRegressor(folder, **OPTIONS).fit(X, [0.1, 0.2, 0.3, 0.5])
    if not options:  # as XLM-R's was trained
        regressor.export(tmp_path / "network")
        for vectors in read_by_others(tmp_path / "network"):
            np.testing.assert_allclose(vectors, regressor.encode(TEXTS), atol=1e-5)
        return
    with pytest.raises(ValueError, match=r"SentencePiece model of another kind than XLM-R's"):
        regressor.export(tmp_path / "network")
    assert not (tmp_path / "network").exists()


@pytest.mark.parametrize("fitted", [False, True])
def test_the_network_of_an_encoder(tmp_path, transformers_folder, xlmr_folder, fitted):
    encoder = MiniLMEncoder(transformers_folder, prompt="q: ", max_length=20, pooling="cls", precision="fp32")
    if fitted:
        encoder.fit(TEXTS)
    encoder.export(tmp_path / "network")
    for vectors in read_by_others(tmp_path / "network"):
        np.testing.assert_allclose(vectors, encoder.transform(TEXTS), atol=1e-5)
    assert SentenceTransformer(str(tmp_path / "network"), device="cpu").max_seq_length == 20
    encoder.set_params(device="cuda:99").export(tmp_path / "elsewhere")  # nothing is computed
    if fitted:
        with pytest.raises(ValueError, match="has other weights"):
            encoder.set_params(model=xlmr_folder).export(tmp_path / "other")


def test_encoders_that_cannot_be_exported(tmp_path, distilbert_folder):
    with pytest.raises(ValueError, match="which can read it as it is"):
        MiniLMEncoder(distilbert_folder).export(tmp_path / "network")
    with pytest.raises(ValueError, match="long_text='chunk_mean' is not known to other packages"):
        MiniLMEncoder(long_text="chunk_mean").export(tmp_path / "network")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_estimator_is_no_checkpoint(tmp_path):
    MiniLMEncoder().save(tmp_path)
    for opened in (MiniLMEncoder(tmp_path).transform, MiniLMClassifier(tmp_path, **OPTIONS).fit):
        with pytest.raises(OSError, match="holds a saved estimator, not a checkpoint: open it by its class"):
            opened(TEXTS) if opened.__name__ == "transform" else opened(X, Y)


def test_a_folder_of_setfit_says_how_it_is_opened(tmp_path, transformers_folder):
    folder = shutil.copytree(transformers_folder, tmp_path / "setfit")
    (folder / "model_head.pkl").touch()
    with pytest.raises(ValueError, match=r"saved by SetFit.*make_pipeline\(MiniLMEncoder\(.*joblib\.load"):
        MiniLMClassifier.from_transformers(folder)
