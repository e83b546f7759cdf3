"""Heads that transformers trained: the estimators give what transformers gives."""

import json
import shutil

import joblib
import numpy as np
import pytest
import torch
import transformers
from conftest import TEXTS, edit_json, move_into_module
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
    _fine_tuned,
)
from skminilm._entailment import nli_digest
from skminilm.checkpoints import load_checkpoint
from skminilm.checkpoints.tokenizer import write_tokenizer

PAIRS = [(text, other) for text in TEXTS for other in ("It is late.", "Der Brief kam an.")]
FP32 = {"precision": "fp32"}


def fine_tuned(folder, vocabulary, task="SequenceClassification", kind="XLMRoberta", **options):
    """Write a tiny network with a head into a folder, as transformers' Trainer does, and return it."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        type_vocab_size=1,
        pad_token_id=0 if kind == "Bert" else 1,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, f"{kind}For{task}")(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return network


@pytest.fixture
def make_folder(tmp_path, xlmr_folder):
    """Return a function that writes a network with a head and XLM-R's tokenizer into a folder."""

    def make(name="tuned", **options):
        folder = tmp_path / name
        network = fine_tuned(folder, 250_037, **options)
        shutil.copy(xlmr_folder / "sentencepiece.bpe.model", folder)
        return folder, network

    return make


@pytest.fixture(scope="module")
def outputs_of(tmp_path_factory):
    """Return a function that gives what transformers computes of texts or pairs, one by one."""
    write_tokenizer(folder := tmp_path_factory.mktemp("tokenizer"), load_checkpoint("bundled"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def outputs(network, rows, name="logits"):
        found = []
        for row in rows:
            encoded = tokenizer(*([row] if isinstance(row, str) else row), return_tensors="pt")
            with torch.no_grad():
                found.append(network(**encoded)[name][0].numpy())
        return found

    return outputs


NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
@pytest.mark.parametrize("rows", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_classes_are_those_of_transformers(make_folder, outputs_of, kind, rows):
    folder, network = make_folder(kind=kind, id2label=NLI)
    expected = np.array(outputs_of(network, rows))
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    assert classifier.classes_.tolist() == ["contradiction", "entailment", "neutral"]
    in_order = expected[:, [2, 0, 1]]
    np.testing.assert_allclose(classifier.decision_function(rows), in_order, atol=1e-5)
    proba = torch.softmax(torch.from_numpy(in_order), dim=1)
    np.testing.assert_allclose(classifier.predict_proba(rows), proba, atol=1e-5)
    assert classifier.predict(rows).tolist() == [NLI[number] for number in expected.argmax(axis=1)]
    assert np.ptp(expected, axis=0).min() > 0.01  # the texts count


def test_outputs_without_names_are_numbers(make_folder, outputs_of):
    folder, network = make_folder(num_labels=12)
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    assert classifier.classes_.tolist() == list(range(12))
    expected = np.array(outputs_of(network, TEXTS))
    np.testing.assert_allclose(classifier.decision_function(TEXTS), expected, atol=1e-5)


def test_names_that_are_numbers(make_folder):
    folder, _ = make_folder(num_labels=3)
    edit_json(folder / "config.json", id2label={"0": 1, "1": -1, "2": 0})
    classifier = MiniLMClassifier.from_transformers(folder)
    assert classifier.classes_.tolist() == [-1, 0, 1]
    assert 0 <= classifier.score(TEXTS, [-1, 0, 1, 0, 1, -1]) <= 1


def test_several_labels_a_text(make_folder, outputs_of):
    folder, network = make_folder(problem_type="multi_label_classification", id2label={0: "b", 1: "a"})
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    assert classifier.classes_.tolist() == ["b", "a"]
    expected = np.array(outputs_of(network, TEXTS))
    np.testing.assert_array_equal(classifier.predict(TEXTS), expected > 0)
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), 1 / (1 + np.exp(-expected)), atol=1e-5)
    with pytest.raises(ValueError, match="gives classes"):
        MiniLMRegressor.from_transformers(folder)


@pytest.mark.parametrize("problem_type", [None, "regression", "single_label_classification"])
def test_a_network_that_ranks_pairs(make_folder, outputs_of, problem_type):
    folder, network = make_folder(num_labels=1)
    edit_json(folder / "config.json", problem_type=problem_type)
    regressor = MiniLMRegressor.from_transformers(folder, **FP32)
    expected = np.array(outputs_of(network, PAIRS))[:, 0]
    np.testing.assert_allclose(regressor.predict(PAIRS), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"gives numbers, not classes: use MiniLMRegressor"):
        MiniLMClassifier.from_transformers(folder)


def test_several_numbers_a_text(make_folder, outputs_of):
    folder, network = make_folder(num_labels=2, problem_type="regression")
    expected = np.array(outputs_of(network, TEXTS))
    np.testing.assert_allclose(
        MiniLMRegressor.from_transformers(folder, **FP32).predict(TEXTS), expected, atol=1e-5
    )


def test_classes_are_no_numbers(make_folder):
    folder, _ = make_folder(id2label=NLI)
    with pytest.raises(ValueError, match=r"gives classes \(\['entailment', .*use MiniLMClassifier"):
        MiniLMRegressor.from_transformers(folder)


@pytest.mark.parametrize("save_weights", ["delta", "full"])
def test_what_was_opened_can_be_kept(make_folder, tmp_path, save_weights):
    folder, _ = make_folder(id2label=NLI)
    classifier = MiniLMClassifier.from_transformers(folder, save_weights=save_weights)
    expected = classifier.predict_proba(PAIRS)
    classifier.save(tmp_path / "saved")
    joblib.dump(classifier, tmp_path / "saved.joblib")
    if save_weights == "full":
        folder.rename(tmp_path / "elsewhere")
    else:
        assert (tmp_path / "saved.joblib").stat().st_size < 20_000
    for again in (MiniLMClassifier.load(tmp_path / "saved"), joblib.load(tmp_path / "saved.joblib")):
        np.testing.assert_array_equal(again.predict_proba(PAIRS), expected)


def test_another_head_beside_the_same_network_is_noticed(make_folder, tmp_path):
    folder, _ = make_folder(id2label=NLI)
    classifier = MiniLMClassifier.from_transformers(folder)
    weights = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        weights.classifier.out_proj.bias += 1
    weights.save_pretrained(folder)
    with pytest.raises(ValueError, match="has other weights"):
        classifier.predict(TEXTS)


def test_zero_shot_by_a_network_of_others(make_folder, outputs_of):
    folder, network = make_folder(id2label=NLI)
    nli = MiniLMClassifier.from_transformers(folder, **FP32)
    labels = ["sports", "politics"]
    zero_shot = MiniLMZeroShotClassifier(labels=labels, nli=nli).fit()
    pairs = [(text, f"This text is about {label}.") for text in TEXTS for label in sorted(labels)]
    logits = torch.tensor(np.array(outputs_of(network, pairs)))
    entailed = logits.log_softmax(dim=1)[:, 0].view(len(TEXTS), 2)
    np.testing.assert_allclose(zero_shot.predict_proba(TEXTS), entailed.softmax(dim=1), atol=1e-5)
    several = MiniLMZeroShotClassifier(labels=labels, nli=nli, multi_label=True).fit()
    odds = (logits[:, 0] - logits[:, 2]).view(len(TEXTS), 2)[:, [1, 0]]  # in the order of `labels`
    np.testing.assert_allclose(several.predict_proba(TEXTS), odds.sigmoid(), atol=1e-5)
    for path in (folder, "somebody/an-nli-model"):
        with pytest.raises(
            FileNotFoundError, match=r"no saved estimator.*MiniLMClassifier\.from_transformers"
        ):
            MiniLMZeroShotClassifier(labels=labels, nli=path).fit()
    other = MiniLMClassifier.from_transformers(folder, **FP32)
    other.pooler_ = {**other.pooler_, "intercept": other.pooler_["intercept"] + 1}
    with pytest.raises(ValueError, match="another classifier than in fit"):
        zero_shot.set_params(nli=other).predict(TEXTS)


def test_it_can_be_trained_on(make_folder, requests):
    X, y = requests.data[:32], requests.target[:32]
    folder, _ = make_folder(id2label=NLI)
    classifier = MiniLMClassifier.from_transformers(folder).set_params(epochs=1, random_state=0)
    with pytest.raises(
        ValueError, match=r"one that transformers trained cannot be gone on with.*warm_start=False"
    ):
        classifier.set_params(warm_start=True).fit(X, y)
    classifier.set_params(warm_start=False).fit(X, y)
    assert classifier.pooler_ is None
    fresh = MiniLMClassifier(folder, epochs=1, max_length=78, random_state=0).fit(X, y)
    np.testing.assert_array_equal(classifier.predict_proba(X), fresh.predict_proba(X))


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
def test_answers_are_those_of_transformers(make_folder, outputs_of, kind):
    folder, network = make_folder(task="QuestionAnswering", kind=kind)
    answerer = MiniLMQuestionAnswerer.from_transformers(
        folder, max_length=76, stride=16, max_answer_length=5, **FP32
    )
    X = [("Where is the key?", "The key is under the mat."), ("Wer kommt?", "Morgen kommt Ada.")]
    starts, ends = (outputs_of(network, X, f"{side}_logits") for side in ("start", "end"))
    ids = [load_checkpoint(folder).tokenizer.encode([q], [c], max_length=76).input_ids for q, c in X]
    for row, spans in enumerate(answerer.predict_spans(X)):
        second = np.flatnonzero(ids[row] == 2)[1] + 1  # behind </s></s>
        scores = {
            (first, last): starts[row][first] + ends[row][last]
            for first in range(second, len(ids[row]) - 1)
            for last in range(first, min(first + 5, len(ids[row]) - 1))
        }
        best = max(scores, key=scores.get)
        assert answerer.predict(X)[row] == spans[0].text
        normaliser = np.logaddexp.reduce([*scores.values(), starts[row][0] + ends[row][0]])
        assert spans[0].score == pytest.approx(np.exp(scores[best] - normaliser), abs=1e-5)


def test_a_network_that_finds_answers_learns_others(make_folder):
    folder, _ = make_folder(task="QuestionAnswering")
    options = dict(max_length=64, stride=8, max_answer_length=9, **FP32)
    X, y = [("Where is the key?", "The key is under the mat."), ("Wer?", "Morgen kommt Ada.")], ["mat", "Ada"]
    answerer = MiniLMQuestionAnswerer.from_transformers(folder, **options)
    coef, expected = answerer.coef_, answerer.predict_spans(X, n_best=3)
    still = dict(trainable=1, epochs=1, learning_rate=1e-12, head_learning_rate=1e-12, random_state=0)
    answerer.set_params(warm_start=True, **still).fit(X, y)
    np.testing.assert_allclose(answerer.coef_, coef, atol=1e-9)
    for spans, before in zip(answerer.predict_spans(X, n_best=3), expected, strict=True):
        assert [span[:2] for span in spans] == [span[:2] for span in before]
        np.testing.assert_allclose([s.score for s in spans], [s.score for s in before], rtol=1e-4)
    answerer.set_params(warm_start=False).fit(X, y)
    assert np.abs(answerer.coef_ - coef).max() > 1e-3  # a new head


def test_a_network_without_the_head(make_folder, tmp_path):
    folder, _ = make_folder(task="QuestionAnswering")
    with pytest.raises(ValueError, match="holds no head for texts"):
        MiniLMClassifier.from_transformers(folder)
    with pytest.raises(ValueError, match="'bundled' holds no head for texts"):
        MiniLMRegressor.from_transformers("bundled")
    other, _ = make_folder("other", id2label=NLI)
    with pytest.raises(ValueError, match="holds no head for answers"):
        MiniLMQuestionAnswerer.from_transformers(other)


@pytest.mark.parametrize("task", ["TokenClassification", "MultipleChoice"])
def test_the_head_of_another_task_is_not_taken_for_one_of_texts(make_folder, task):
    """Older files hold a pooler that their head does not use."""
    folder, network = make_folder(task=task, kind="Bert")
    if task == "TokenClassification":
        extra = {"bert.pooler.dense.weight": torch.zeros(16, 16), "bert.pooler.dense.bias": torch.zeros(16)}
        save_file({**network.state_dict(), **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    for estimator in (MiniLMClassifier, MiniLMRegressor):
        with pytest.raises(ValueError, match=rf"holds no head for texts .* saved by BertFor{task}"):
            estimator.from_transformers(folder)


@pytest.mark.parametrize(
    "names", [["ENTAILMENT", "Neutral", "CONTRADICTION"], ["LABEL_0", "LABEL_1", "LABEL_2"]]
)
def test_names_of_entailment_in_any_case(make_folder, names):
    folder, _ = make_folder(id2label=dict(enumerate(names)))
    nli = MiniLMClassifier.from_transformers(folder)
    zero_shot = MiniLMZeroShotClassifier(labels=["sports", "politics"], nli=nli, multi_label=True)
    if names[0] == "LABEL_0":
        with pytest.raises(ValueError, match=r"needs the class 'entailment'.*id2label of its config\.json"):
            zero_shot.fit()
    else:
        assert zero_shot.fit().predict_proba(TEXTS).shape == (len(TEXTS), 2)


def test_pairs_need_the_vocabulary_of_xlmr(tmp_path, wordpiece):
    fine_tuned(tmp_path, len(wordpiece), kind="Bert", id2label=NLI)
    wordpiece.save_pretrained(tmp_path)
    classifier = MiniLMClassifier.from_transformers(tmp_path)
    assert set(classifier.predict(TEXTS)) <= set(NLI.values())
    with pytest.raises(ValueError, match="needs transformers itself"):
        classifier.predict(PAIRS)


def test_a_head_over_a_network_that_the_engine_cannot_run(make_folder):
    folder, _ = make_folder(id2label=NLI, hidden_act="relu")
    with pytest.raises(
        ValueError, match=r"its activation is 'relu', not 'gelu'\. Use transformers\.pipeline"
    ):
        MiniLMClassifier.from_transformers(folder)


def test_names_that_are_twice_there(make_folder):
    folder, _ = make_folder(id2label={0: "a", 1: "a", 2: "b"})
    with pytest.raises(ValueError, match="names two outputs alike"):
        MiniLMClassifier.from_transformers(folder)


@pytest.mark.parametrize("options", [{"max_length": 2}, {"max_length": "long"}, {"precision": "int8"}])
def test_parameters_are_checked(make_folder, options):
    folder, _ = make_folder(id2label=NLI)
    with pytest.raises(ValueError, match=next(iter(options))):
        MiniLMClassifier.from_transformers(folder, **options)


def test_long_texts_are_cut_at_the_limit_of_the_checkpoint(make_folder):
    folder, _ = make_folder(id2label=NLI)
    classifier = MiniLMClassifier.from_transformers(folder)
    assert classifier.max_length == 78
    with pytest.warns(UserWarning, match="max_length=78"):
        classifier.predict(["word " * 100])
    short = MiniLMClassifier.from_transformers(folder, max_length=10)
    with pytest.warns(UserWarning, match="max_length=10"):
        short.predict(["word " * 100])


def test_a_damaged_head(make_folder):
    folder, network = make_folder(id2label=NLI)
    with torch.no_grad():
        network.classifier.dense.weight[0, 0] = torch.nan
    network.save_pretrained(folder)
    with pytest.raises(OSError, match=r"classifier\.dense holds a number that is not finite"):
        MiniLMClassifier.from_transformers(folder)
    weights = {**network.state_dict(), "classifier.dense.weight": torch.zeros(3, 3)}
    network.save_pretrained(folder, state_dict=weights)
    with pytest.raises(OSError, match=r"classifier\.dense has the shapes \(3, 3\)"):
        MiniLMClassifier.from_transformers(folder)


@pytest.mark.parametrize("names", [["a"], {"0": None, "1": "b", "2": "c"}, {"0": 1, "1": "b", "2": "c"}])
def test_names_that_are_none(make_folder, names):
    folder, _ = make_folder(id2label=NLI)
    edit_json(folder / "config.json", id2label=names)
    with pytest.raises(OSError, match="garbles id2label"):
        MiniLMClassifier.from_transformers(folder)


def test_the_pooler_of_older_files_is_not_the_one_of_the_head(make_folder, outputs_of):
    """XLM-R's head has a layer of its own; older files hold the network's pooler beside it."""
    folder, network = make_folder(id2label=NLI)
    extra = {"roberta.pooler.dense.weight": torch.ones(16, 16), "roberta.pooler.dense.bias": torch.ones(16)}
    save_file({**network.state_dict(), **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    expected = np.array(outputs_of(network, TEXTS))[:, [2, 0, 1]]
    np.testing.assert_allclose(classifier.decision_function(TEXTS), expected, atol=1e-5)


def test_a_network_that_was_saved_under_several_names(make_folder):
    folder, _ = make_folder(id2label=NLI)
    names = ["XLMRobertaModel", "XLMRobertaForSequenceClassification"]
    edit_json(folder / "config.json", architectures=names)
    assert len(MiniLMClassifier.from_transformers(folder).classes_) == 3


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(2), r"has the shapes \(3, 16\) and \(2,\)"),
        (torch.full((3,), torch.inf), "not finite"),
        (None, "lack 'classifier.out_proj.bias'"),
    ],
)
def test_a_damaged_intercept(make_folder, bias, message):
    folder, network = make_folder(id2label=NLI)
    weights = {**network.state_dict(), "classifier.out_proj.bias": bias}
    weights = {name: value for name, value in weights.items() if value is not None}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=message):
        MiniLMClassifier.from_transformers(folder)


def test_a_head_of_spans_with_another_number_of_outputs(make_folder):
    folder, _ = make_folder(task="QuestionAnswering", num_labels=3)
    with pytest.raises(OSError, match=r"qa_outputs has the shapes \(3, 16\)"):
        MiniLMQuestionAnswerer.from_transformers(folder, max_length=76, stride=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_low_precision(make_folder, outputs_of, dtype):
    folder, network = make_folder(id2label=NLI)
    network.to(dtype).save_pretrained(folder)
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    assert classifier.coef_.dtype == np.float32
    expected = np.array(outputs_of(network.float(), PAIRS))[:, [2, 0, 1]]
    np.testing.assert_allclose(classifier.decision_function(PAIRS), expected, atol=1e-5)


def test_a_head_in_a_folder_of_sentence_transformers(make_folder):
    folder, _ = make_folder(id2label=NLI)
    move_into_module(folder)
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    assert classifier.classes_.tolist() == sorted(NLI.values())


def test_true_is_no_number(make_folder):
    folder, _ = make_folder(id2label=NLI)
    edit_json(folder / "config.json", id2label={"0": True, "1": False, "2": 2})
    with pytest.raises(OSError, match="garbles id2label"):
        MiniLMClassifier.from_transformers(folder)


def test_one_label_that_may_hold(make_folder, outputs_of):
    folder, network = make_folder(problem_type="multi_label_classification", id2label={0: "toxic"})
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    assert classifier.classes_.tolist() == ["toxic"]
    np.testing.assert_array_equal(classifier.predict(TEXTS), np.array(outputs_of(network, TEXTS)) > 0)
    with pytest.raises(ValueError, match="gives classes"):
        MiniLMRegressor.from_transformers(folder)


def test_a_prompt_before_texts(make_folder):
    folder, _ = make_folder(id2label=NLI)
    plain = MiniLMClassifier.from_transformers(folder, **FP32)
    prompted = MiniLMClassifier.from_transformers(folder, prompt="query: ", **FP32)
    assert prompted.prompt == prompted.settings_["prompt"] == "query: "
    expected = plain.decision_function([f"query: {text}" for text in TEXTS])
    np.testing.assert_allclose(prompted.decision_function(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [MiniLMClassifier, MiniLMRegressor, MiniLMQuestionAnswerer])
def test_parameters_arrive(make_folder, kind):
    task = "QuestionAnswering" if kind is MiniLMQuestionAnswerer else "SequenceClassification"
    folder, _ = make_folder(
        task=task, num_labels=2, **({"problem_type": "regression"} if kind is MiniLMRegressor else {})
    )
    with pytest.raises(ValueError, match="revision='v1' has no meaning"):
        kind.from_transformers("bundled", revision="v1")
    options = dict(max_length=20, precision="fp32", device="cpu", save_weights="full", verbose=1)
    if kind is MiniLMQuestionAnswerer:
        options |= dict(stride=3, max_answer_length=4, no_answer_threshold=0.5)
    else:
        options |= dict(prompt="query: ")
    estimator = kind.from_transformers(folder, **options)
    assert {name: estimator.get_params()[name] for name in options} == options
    assert estimator.checkpoint_ is not None


def test_revision_is_a_parameter(make_folder, monkeypatch):
    folder, _ = make_folder(id2label=NLI)
    opened = []
    original = _fine_tuned.open_checkpoint
    monkeypatch.setattr(
        _fine_tuned,
        "open_checkpoint",
        lambda model, revision, **options: opened.append(revision) or original(model, None),
    )
    classifier = MiniLMClassifier.from_transformers(folder, revision="v2")
    assert opened == [classifier.revision] == ["v2"]


def test_the_network_below_a_head_of_transformers(make_folder, tmp_path):
    folder, _ = make_folder(id2label=NLI, layer_norm_eps=1e-2)
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    classifier.export(tmp_path / "network")
    expected = classifier.encode(TEXTS)
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.1
    vectors = SentenceTransformer(str(tmp_path / "network"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    vectors = MiniLMEncoder(tmp_path / "network", normalize="auto", precision="fp32").transform(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_an_xlmr_configuration_that_does_not_say_what_pads(make_folder, outputs_of):
    folder, network = make_folder(id2label=NLI)
    config = json.loads((folder / "config.json").read_text())
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    classifier = MiniLMClassifier.from_transformers(folder, **FP32)
    expected = np.array(outputs_of(network, TEXTS))[:, [2, 0, 1]]
    np.testing.assert_allclose(classifier.decision_function(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["Entailment", "entailment", "contradiction"], {}),
        (list(NLI.values()), {"problem_type": "multi_label_classification"}),
    ],
)
def test_entailment_is_one_class_of_several(make_folder, names, options):
    folder, _ = make_folder(id2label=dict(enumerate(names)), **options)
    nli = MiniLMClassifier.from_transformers(folder)
    with pytest.raises(ValueError, match="nli needs the class 'entailment'"):
        MiniLMZeroShotClassifier(labels=["sports", "politics"], nli=nli).fit()


def test_the_digest_of_nli_follows_its_classes(make_folder):
    folder, _ = make_folder(id2label=NLI)
    nli = MiniLMClassifier.from_transformers(folder)
    before = nli_digest(nli)
    nli.classes_ = nli.classes_[::-1]
    assert nli_digest(nli) != before


def test_texts_are_cut_where_the_longest_hypothesis_leaves_no_room(make_folder):
    folder, _ = make_folder(id2label=NLI)
    nli = MiniLMClassifier.from_transformers(folder, max_length=20)
    labels = ["law", "the laws of all the countries of the whole wide world"]
    zero_shot = MiniLMZeroShotClassifier(labels=labels, nli=nli, hypothesis_template="{}").fit()
    with pytest.warns(UserWarning, match="1 of 1 texts have more than max_length=20 tokens"):
        zero_shot.predict(["The parliament voted on it."])


def test_roles_of_tokens(tmp_path):
    write_tokenizer(tmp_path, load_checkpoint("bundled"))
    written = transformers.AutoTokenizer.from_pretrained(tmp_path)
    roles = ("bos", "cls", "eos", "sep", "unk", "pad", "mask")
    assert [getattr(written, f"{role}_token_id") for role in roles] == [0, 0, 2, 2, 3, 1, 250_001]


def test_the_same_question_again(make_folder):
    folder, _ = make_folder(task="QuestionAnswering")
    answerer = MiniLMQuestionAnswerer.from_transformers(folder, max_length=76, stride=16)
    X = [("Where is the key?", "The key is under the mat."), ("Wer kommt?", "Morgen kommt Ada.")]
    margins = answerer.no_answer_margin(X)
    assert margins[0] != margins[1]
    np.testing.assert_array_equal(answerer.no_answer_margin([X[1], X[0], X[1]]), margins[[1, 0, 1]])
    spans = answerer.predict_spans([X[0], X[0]])
    spans[0].clear()
    assert len(spans[1]) == 1


def test_a_stride_that_hides_answers_in_the_first_slice(make_folder, monkeypatch):
    folder, _ = make_folder(task="QuestionAnswering")
    monkeypatch.setattr("skminilm._question_answerer._SLICE_CHARACTERS", 10)
    answerer = MiniLMQuestionAnswerer.from_transformers(folder, max_length=64, stride=8, max_answer_length=9)
    long = " ".join(f"word{number}" for number in range(60))
    with pytest.warns(UserWarning, match="stride=8 tokens, less than"):
        answerer.predict([("q", long), ("q", "one window")])
