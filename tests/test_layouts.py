"""Folders as others write them: the vectors are sentence-transformers' own, whatever the files say."""

import json
import shutil

import numpy as np
import pytest
import sentence_transformers
import tokenizers
import torch
import transformers
from conftest import TEXTS, edit_json, tiny_bert
from safetensors.torch import load_file, save_file
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from skminilm import MiniLMClassifier, MiniLMEncoder
from skminilm.checkpoints import load_checkpoint
from skminilm.checkpoints.layout import Layout
from skminilm.checkpoints.tokenizer import read_tokenizer

try:
    import peft
except ImportError:
    peft = None


def same_as_sentence_transformers(folder, texts=TEXTS):
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    found = MiniLMEncoder(folder, precision="fp32", cache=None).transform(texts)
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))
    return found


@pytest.fixture
def folder(tmp_path, make_sentence_transformers_folder):
    return shutil.copytree(make_sentence_transformers_folder(normalize=False), tmp_path / "model")


def lowers_texts(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)


def cuts_vectors(folder):
    edit_json(folder / "config_sentence_transformers.json", truncate_dim=8)


def scales_and_cuts_vectors(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    cuts_vectors(folder)


def cuts_texts_on_the_left_by_its_tokenizer_file(folder):
    truncation = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / "tokenizer.json", truncation=truncation)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')


def has_an_adapter(folder):
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    options = {"target_modules": ["query", "value"], "init_lora_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model.add_adapter(peft.LoraConfig(**options))
        except ValueError as error:
            if "not compatible" not in str(error):
                raise
            pytest.skip(f"this transformers takes no such peft: {error}")
    model[0].auto_model.save_pretrained(folder)
    base = folder / "model.safetensors"
    assert base.exists()
    assert (folder / "adapter_config.json").exists()


def has_settings_without_modules(folder):
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    edit_json(
        folder / "config_sentence_transformers.json",
        prompts={"a": "a long prompt: "},
        default_prompt_name="a",
    )


def has_arguments_for_transformers(folder):
    (folder / "sentence_bert_config.json").write_text('{"tokenizer_args": {"model_max_length": 5}}')


def bears_an_older_name(folder):
    (folder / "sentence_bert_config.json").unlink()
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 5, "do_lower_case": false}')


def says_more_than_its_tokenizer(folder):
    edit_json(folder / "tokenizer_config.json", model_max_length=4)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')


def cuts_texts_on_the_left(folder):
    edit_json(folder / "tokenizer_config.json", truncation_side="left", model_max_length=5)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')


def pools_twice(folder):
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}'
    )


def keeps_case_in_its_vocabulary_alone(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)


def ends_with_a_special_token_alone(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    del content["post_processor"]["single"][0]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def edit_weights(folder, name_of):
    path = folder / "model.safetensors"
    weights = {name_of(name): value for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def names_norms_as_the_first_bert(folder):
    edit_weights(
        folder,
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    )


needs_truncate_dim = pytest.mark.skipif(
    int(sentence_transformers.__version__.split(".")[0]) < 6, reason="reads no truncate_dim from the folder"
)
LAYOUTS = [
    lowers_texts,
    pytest.param(cuts_vectors, marks=needs_truncate_dim),
    pytest.param(scales_and_cuts_vectors, marks=needs_truncate_dim),
    pytest.param(has_an_adapter, marks=pytest.mark.skipif(peft is None, reason="no peft")),
    has_settings_without_modules,
    cuts_texts_on_the_left_by_its_tokenizer_file,
    has_arguments_for_transformers,
    bears_an_older_name,
    says_more_than_its_tokenizer,
    cuts_texts_on_the_left,
    pools_twice,
    keeps_case_in_its_vocabulary_alone,
    ends_with_a_special_token_alone,
    names_norms_as_the_first_bert,
]


WITHOUT_EFFECT = (
    keeps_case_in_its_vocabulary_alone,
    names_norms_as_the_first_bert,
    has_settings_without_modules,
)


@pytest.mark.filterwarnings("ignore:.*max_length=:UserWarning")
@pytest.mark.parametrize("change", LAYOUTS, ids=lambda change: change.__name__)
def test_a_folder_that(folder, change):
    before = same_as_sentence_transformers(folder)
    change(folder)
    after = same_as_sentence_transformers(folder)
    assert np.array_equal(before, after) == (change in WITHOUT_EFFECT)


def test_vectors_of_norm_1_before_a_dense_layer_stay_as_they_are(tmp_path, make_sentence_transformers_folder):
    folder = shutil.copytree(make_sentence_transformers_folder(dense=8), tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[2:] = modules[3], modules[2]  # Normalize, Dense
    (folder / "modules.json").write_text(json.dumps(modules))
    found = same_as_sentence_transformers(folder)
    assert not np.allclose(np.linalg.norm(found, axis=1), 1)


def test_a_prefix_beside_a_table_that_is_no_weight(folder):
    before = same_as_sentence_transformers(folder)
    path = folder / "model.safetensors"
    weights = {f"bert.{name}": value for name, value in load_file(path).items()}
    save_file({**weights, "embeddings.position_ids": torch.arange(64)}, path, metadata={"format": "pt"})
    np.testing.assert_array_equal(MiniLMEncoder(folder, precision="fp32").transform(TEXTS), before)


@pytest.fixture
def xlm_roberta_folder(tmp_path, wordpiece):
    """A network whose positions begin behind that of padding, with the names that a head gives its weights."""
    config = transformers.XLMRobertaConfig(
        vocab_size=len(wordpiece),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=20,
        pad_token_id=wordpiece.pad_token_id,
        num_labels=3,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    network = transformers.XLMRobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path)
    wordpiece.save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=512)
    return tmp_path


@pytest.mark.parametrize("architecture", ["Roberta", "Camembert"])
def test_relatives_of_xlm_roberta_run_through_sentence_transformers(xlm_roberta_folder, architecture):
    """Their tokenizers have older forms that only transformers reads."""
    name = architecture.lower()
    edit_json(
        xlm_roberta_folder / "config.json", model_type=name, architectures=[f"{architecture}ForMaskedLM"]
    )
    assert f"its architecture is {name!r}" in load_checkpoint(xlm_roberta_folder).foreign_reason
    same_as_sentence_transformers(xlm_roberta_folder)


def test_xlm_roberta_runs_on_the_engine(xlm_roberta_folder):
    assert load_checkpoint(xlm_roberta_folder).foreign_reason == ""
    same_as_sentence_transformers(xlm_roberta_folder)


def test_texts_as_long_as_the_positions_of_xlm_roberta_reach(xlm_roberta_folder):
    assert (
        load_checkpoint(xlm_roberta_folder).defaults.max_length == 19
    )  # padding has the id 0: 1 of 20 is not used
    texts = ["word " * 100, "good " * 17]
    with pytest.warns(UserWarning, match="max_length=19"):
        vectors = MiniLMEncoder(xlm_roberta_folder, precision="fp32").transform(texts)
    edit_json(
        xlm_roberta_folder / "tokenizer_config.json", model_max_length=19
    )  # or sentence-transformers fails
    np.testing.assert_array_equal(same_as_sentence_transformers(xlm_roberta_folder, texts), vectors)
    with pytest.raises(ValueError, match="more than the 19 positions"):
        MiniLMEncoder(xlm_roberta_folder, max_length=20).transform(["a"])


@pytest.mark.filterwarnings("ignore:.*texts have more than max_length")
def test_xlm_roberta_can_be_trained_and_kept(xlm_roberta_folder, requests, tmp_path):
    X, y = requests.data[:40], requests.target[:40]
    classifier = MiniLMClassifier(
        xlm_roberta_folder, trainable="all", epochs=1, max_length=19, save_weights="full", random_state=0
    ).fit(X, y)
    expected = classifier.predict_proba(X)
    classifier.save(tmp_path / "saved")
    xlm_roberta_folder.joinpath("config.json").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(MiniLMClassifier.load(tmp_path / "saved").predict_proba(X), expected)


def test_position_embeddings_of_xlm_roberta_that_are_too_few(xlm_roberta_folder):
    edit_json(xlm_roberta_folder / "config.json", max_position_embeddings=21)
    with pytest.raises(OSError, match=r"has the shape \(20, 32\), config.json says \(21, 32\)"):
        load_checkpoint(xlm_roberta_folder)


def unigram(requests, *, mask_at_the_end=True, lower=False, space_before=True):
    """A small vocabulary of XLM-R's kind."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    steps = [normalizers.Lowercase()] if lower else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if space_before else "never")
    tokenizer.train_from_iterator(
        requests.data,
        trainers.UnigramTrainer(
            vocab_size=1500,
            special_tokens=special + ([] if mask_at_the_end else ["<mask>"]),
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=64,
    )


@pytest.mark.parametrize(
    "options", [{}, {"mask_at_the_end": False}, {"lower": True}, {"space_before": False}], ids=str
)
def test_a_small_vocabulary_of_xlmrs_kind(tmp_path, requests, options):
    tokenizer = unigram(requests, **options)
    tiny_bert(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    same_as_sentence_transformers(tmp_path, [*TEXTS, *requests.data[::40]])


def test_a_sentencepiece_model_left_beside_another_vocabulary_does_not_count(tmp_path, requests, xlmr_folder):
    tokenizer = unigram(requests)
    tiny_bert(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(xlmr_folder / "sentencepiece.bpe.model", tmp_path)
    same_as_sentence_transformers(tmp_path, [*TEXTS, *requests.data[::40]])
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"has 250001 ids, and the network \d+ word embeddings"):
        load_checkpoint(tmp_path)


def test_a_tokenizer_file_that_is_not_understood_is_named(tmp_path, requests, xlmr_folder):
    tokenizer = unigram(requests)
    tiny_bert(len(tokenizer)).save_pretrained(tmp_path)
    shutil.copy(xlmr_folder / "sentencepiece.bpe.model", tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(OSError, match=r"tokenizer\.json cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("path", ["../other", "/usr/share"])
def test_a_module_outside_of_the_folder_is_refused(folder, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(OSError, match=rf"names '{path}': the path of a module is relative"):
        load_checkpoint(folder)


def test_a_class_of_somebody_else_is_not_the_one_of_that_name(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "somebody.models.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "a module of the type somebody.models.Pooling" in load_checkpoint(folder).foreign_reason


def test_an_adapter_alone_is_named(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(OSError, match=r"an adapter .* \(merge_and_unload\)"):
        load_checkpoint(folder)


def test_a_tokenizer_without_a(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    removed = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"], removed]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    same_as_sentence_transformers(folder, [text for text in TEXTS if text != "a"])


def test_a_text_without_tokens_is_refused(tmp_path, requests):
    tokenizer = unigram(requests)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    tokenizer.add_tokens(["[ENT]"])  # so that it is not taken for XLM-R's
    tiny_bert(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = MiniLMEncoder(tmp_path, cache=None)
    assert np.isfinite(encoder.transform(["a word"])).all()
    with pytest.raises(ValueError, match="makes no token of the text ''"):
        encoder.transform(["a word", ""])


@pytest.mark.parametrize("beside_sentencepiece", [False, True])
def test_added_tokens_are_read(tmp_path, requests, xlmr_folder, beside_sentencepiece):
    tokenizer = unigram(requests)
    tokenizer.add_tokens(["[ENT]"])
    tiny_bert(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if beside_sentencepiece:  # which knows nothing of it
        shutil.copy(xlmr_folder / "sentencepiece.bpe.model", tmp_path)
    texts = ["Where is [ENT] now?", "¿Dónde está?"]
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
    assert len(tokenizer) - 1 in ids
    assert read_tokenizer(tmp_path).encode(texts, max_length=64).input_ids.tolist() == ids


def test_the_fingerprint_follows_the_settings_of_a_plain_vocabulary(tmp_path, transformers_folder):
    folder = shutil.copytree(transformers_folder, tmp_path / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    fingerprints = set()
    for lower in (True, False):
        edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=lower)
        fingerprints.add(load_checkpoint(folder).fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize("what", ["module", "activation"])
def test_code_of_a_checkpoint_is_not_run(
    make_sentence_transformers_folder, tmp_path, texts, monkeypatch, what
):
    folder = make_sentence_transformers_folder(dense=16)
    monkeypatch.chdir(tmp_path)
    (folder / "evil_module.py").write_text("raise SystemExit('it ran')")
    modules = json.loads((folder / "modules.json").read_text())
    if what == "module":
        modules[1]["type"] = "evil_module.Evil"
        (folder / "modules.json").write_text(json.dumps(modules))
    else:
        place = next(folder / module["path"] for module in modules if module["type"].endswith("Dense"))
        edit_json(place / "config.json", activation_function="evil_module.Evil")
    with pytest.raises(ValueError, match=r"names 'evil_module\.Evil', .*code of a checkpoint is not run"):
        MiniLMEncoder(folder).transform(texts[:1])


def test_a_module_behind_a_link_to_elsewhere_is_refused(make_sentence_transformers_folder, tmp_path):
    folder = make_sentence_transformers_folder()
    modules = json.loads((folder / "modules.json").read_text())
    place = folder / modules[1]["path"]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="or a link to elsewhere"):
        load_checkpoint(folder)


MODULES = [{"type": "sentence_transformers.models.Transformer", "path": ""}]


def layout(folder, config=(), **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Layout(folder, MODULES, folder, {"model_type": "bert", **dict(config)})


@pytest.mark.parametrize("name", ["hidden_size", "dim", "d_model", "n_embd"])
def test_the_width_of_every_architecture_is_found(tmp_path, name):
    assert Layout(tmp_path, [], tmp_path, {name: 7}).vector_size() == 7


@pytest.mark.parametrize(("cut", "size"), [(16, 16), (99, 32)])
def test_vectors_are_cut_to_no_more_than_they_are(tmp_path, cut, size):
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": cut}))
    assert Layout(tmp_path, MODULES, tmp_path, {"hidden_size": 32}).vector_size() == size


def test_a_decoder_is_not_run_as_an_encoder(tmp_path):
    assert layout(tmp_path).why_foreign() == ""
    assert layout(tmp_path, {"is_decoder": True}).why_foreign() == "its attention is not BERT's"


@pytest.mark.parametrize(
    "name",
    ["model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs"],
)
def test_arguments_for_transformers_are_left_to_it(tmp_path, name):
    files = {"sentence_bert_config": {name: {"x": 1}}}
    assert layout(tmp_path, **files).why_foreign() == "it has settings of its own for transformers"


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "gpt2", "n_positions": 99}, 99),
        ({"model_type": "bert"}, 512),
    ],
)
def test_texts_are_as_long_as_an_architecture_takes_them(tmp_path, config, length):
    assert layout(tmp_path, config).settings().max_length == length


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]
)
def test_settings_under_every_older_name_count(tmp_path, name):
    assert layout(tmp_path, **{f"sentence_{name}_config": {"max_seq_length": 7}}).settings().max_length == 7


@pytest.mark.parametrize(
    ("pooling", "size", "is_foreign"),
    [
        ({"embedding_dimension": 48, "pooling_mode": "mean"}, 48, False),
        ({"word_embedding_dimension": 48, "pooling_mode": ["mean"]}, 48, False),
        ({"embedding_dimension": 48, "pooling_mode": ["mean", "max"]}, 96, True),
    ],
)
def test_poolings_as_newer_releases_write_them(tmp_path, pooling, size, is_foreign):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [*MODULES, {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    found = Layout(tmp_path, modules, tmp_path, {"model_type": "bert", "hidden_size": 32})
    assert found.vector_size() == size
    assert bool(found.why_foreign()) is is_foreign


@pytest.mark.parametrize(("side", "is_foreign"), [("right", False), ("Right", False), ("Left", True)])
def test_the_side_that_is_cut_may_be_in_capitals(tmp_path, side, is_foreign):
    assert bool(layout(tmp_path, tokenizer_config={"truncation_side": side}).why_foreign()) is is_foreign
