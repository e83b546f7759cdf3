import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import edit_json, tiny_bert

from skminilm import MiniLMClassifier, MiniLMEncoder, MiniLMQuestionAnswerer, MiniLMRegressor
from skminilm.checkpoints import PRESETS, BertConfig, bundled, hub, load_checkpoint
from skminilm.checkpoints.embedded import content_digest, embed_checkpoint, open_embedded
from skminilm.checkpoints.folder import model_files
from skminilm.checkpoints.loading import _loaded, file_states
from skminilm.checkpoints.presets import find_preset
from skminilm.checkpoints.q4 import dequantize_q4
from skminilm.checkpoints.sentencepiece_tokenizer import SentencePieceTokenizer
from skminilm.engine import read_trainable_weights


@pytest.fixture
def folder(tmp_path, transformers_folder):
    """A copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(transformers_folder, tmp_path / "model")


def test_q4_blocks_against_plain_python():
    rng = np.random.default_rng(0)
    scales = rng.normal(size=6).astype("<f2")
    packed = rng.integers(0, 256, (6, 16), dtype=np.uint8)
    blocks = np.concatenate([scales.view(np.uint8).reshape(6, 2), packed], axis=1)
    expected = [
        [(b & 15) - 8 for b in row] + [(b >> 4) - 8 for b in row] for row in packed.astype(int).tolist()
    ]
    expected = np.array(expected) * scales.astype(np.float32)[:, None]
    found = dequantize_q4(torch.from_numpy(blocks).view(2, 3, 18))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected.reshape(2, 96).astype(np.float32))


def test_bundled_settings_and_fingerprint():
    checkpoint = load_checkpoint("bundled")
    assert checkpoint.hidden_size == 384
    assert checkpoint.defaults.pooling == "mean"
    assert checkpoint.defaults.normalize is True
    assert checkpoint.defaults.max_length == 512
    assert len(checkpoint.fingerprint) == 64
    assert load_checkpoint("bundled") is checkpoint


def test_a_corrupted_bundled_file_is_refused(tmp_path, monkeypatch):
    blob = bytearray(bundled.find_bundled_file().read_bytes())
    blob[60_000_000] ^= 1
    path = tmp_path / bundled.FILE_NAME
    path.write_bytes(blob)
    monkeypatch.setattr(bundled, "find_bundled_file", lambda: path)
    with pytest.raises(OSError, match=r"damaged.*sha256.*pip install --force-reinstall"):
        bundled.load_bundled()
    path.write_bytes(blob[:1000])
    with pytest.raises(OSError, match="damaged"):
        bundled.load_bundled()


def test_a_missing_bundled_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bundled, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(OSError, match=r"pip install a_package_that_is_not_there==0\.3\.0") as error:
        MiniLMEncoder().transform(["a"])
    # Where pip would put it, so that nothing else is to be set.
    (folder,) = re.findall(r'--target "(.+)" a_package', str(error.value))
    assert folder in sys.path


def test_transformers_folder(folder):
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.hidden_size, checkpoint.defaults.pooling, checkpoint.defaults.normalize) == (
        32,
        "mean",
        False,
    )
    assert checkpoint.defaults.max_length == 64
    assert checkpoint.foreign_reason == ""


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sentence_transformers_folder_gives_its_vectors(make_sentence_transformers_folder, texts, pooling):
    from sentence_transformers import SentenceTransformer

    folder = make_sentence_transformers_folder(pooling, normalize=pooling != "cls", prompt="query: ")
    checkpoint = load_checkpoint(folder)
    assert checkpoint.defaults.pooling == pooling
    assert checkpoint.defaults.normalize is (pooling != "cls")
    assert checkpoint.defaults.prompt == "query: "
    assert checkpoint.defaults.max_length == 24
    with pytest.warns(UserWarning, match="max_length=24"):
        found = MiniLMEncoder(folder, precision="fp32").transform(texts)
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # of numbers up to 3


def test_weights_with_a_head_are_read_under_their_prefix(folder, tmp_path, texts):
    from safetensors.torch import load_file, save_file

    before = MiniLMEncoder(folder, precision="fp32").transform(texts)
    weights = {f"bert.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights["classifier.weight"] = torch.zeros(2, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(MiniLMEncoder(folder, precision="fp32").transform(texts), before)


def test_safetensors_are_preferred_and_bin_is_read(folder, texts):
    from safetensors.torch import load_file

    before = MiniLMEncoder(folder, precision="fp32").transform(texts)
    weights = load_file(folder / "model.safetensors")
    torch.save({name: value * 2 for name, value in weights.items()}, folder / "pytorch_model.bin")
    np.testing.assert_array_equal(MiniLMEncoder(folder, precision="fp32").transform(texts), before)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(MiniLMEncoder(folder, precision="fp32").transform(texts), before)


def test_a_loaded_model_does_not_change_with_its_file(folder, texts):
    encoder = MiniLMEncoder(folder, precision="fp32", cache=None)
    before = encoder.transform(texts)
    path = folder / "model.safetensors"
    blob = path.read_bytes()
    with open(path, "r+b") as file:  # in place, as a copy over it would
        file.seek(len(blob) // 2)
        file.write(b"\xff" * (len(blob) // 2))
    with pytest.raises(OSError, match=r"unusable: .* holds a number that is not finite\. Download"):
        encoder.transform(texts)
    path.write_bytes(blob)
    np.testing.assert_array_equal(encoder.transform(texts), before)


def test_another_file_of_the_same_size_and_time_is_noticed(folder, texts):
    from safetensors.torch import load_file, save_file

    encoder = MiniLMEncoder(folder, precision="fp32", cache=None)
    before = encoder.transform(texts)
    path, other = folder / "model.safetensors", folder / "other.safetensors"
    weights = load_file(path)
    weights["embeddings.LayerNorm.weight"] *= 2
    save_file(weights, other, metadata={"format": "pt"})
    status = path.stat()
    assert other.stat().st_size == status.st_size
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)
    assert np.abs(encoder.transform(texts) - before).max() > 1e-3


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["encoder.layer.1.intermediate.dense.bias", "embeddings.LayerNorm.weight"])
def test_a_weight_that_is_not_finite_is_named(folder, name, number):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name][3] = number
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=f"{name} holds a number that is not finite"):
        MiniLMEncoder(folder).transform(["a"])
    with pytest.raises(OSError, match=f"{name} holds a number that is not finite"):
        MiniLMClassifier(folder, max_length=32, epochs=1).fit(["a", "b"], [0, 1])


def test_weights_that_make_no_finite_vector_are_an_error(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError, match="is not finite: the weights are damaged"):
        MiniLMEncoder(folder).transform(["a"])


@pytest.mark.parametrize("n_together", [1, 1000])
def test_the_row_of_a_vector_that_is_not_finite_is_that_of_the_user(folder, monkeypatch, n_together):
    from skminilm import _fine_tuned
    from skminilm.engine.packed_model import PackedModel

    classifier = MiniLMClassifier(folder, trainable="head", epochs=1, max_length=20).fit(["x", "y"], [0, 1])
    encode = PackedModel.encode

    def damaged(self, first, second, settings, **options):
        vectors, lengths = encode(self, first, second, settings, **options)
        vectors[[text == "b" for text in first]] = np.nan
        return vectors, lengths

    monkeypatch.setattr(PackedModel, "encode", damaged)
    monkeypatch.setattr(_fine_tuned, "_PART_BYTES", 4 * sum(classifier.coef_.shape) * n_together)
    for call in (MiniLMEncoder(folder).transform, classifier.predict, classifier.encode):
        with pytest.raises(FloatingPointError, match="vector of row 3, 'b', is not finite"):
            call(["a", "a", "c", "b"])


def test_a_table_in_4_bits_of_another_shape_is_refused(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    rows, size = weights["embeddings.word_embeddings.weight"].shape
    weights["embeddings.word_embeddings.weight"] = torch.zeros(rows, size // 32, dtype=torch.uint8)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"unusable: .*word_embeddings\.weight has the shape"):
        MiniLMEncoder(folder).transform(["a"])


def shard(folder):
    """Split the weights in two files with an index, as transformers does with large ones; return the files."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(weights))}
    for file in files:
        part = {name: weights[name] for name in weights if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return [folder / file for file in files]


@pytest.mark.parametrize("layout", ["one file", "shards", "bin", "old bin"])
def test_weights_are_read_when_they_are_asked_for(folder, layout, monkeypatch):
    from safetensors.torch import load_file

    expected = load_file(folder / "model.safetensors")
    if layout == "shards":
        shard(folder)
    elif "bin" in layout:
        (folder / "model.safetensors").unlink()
        torch.save(expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "bin")
    copied = []
    original = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: copied.append(1) or original(tensor))
    weights = load_checkpoint(folder).read_weights()
    assert set(weights) == set(expected)
    assert len(copied) == 0
    name = "encoder.layer.1.output.dense.weight"
    torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=0)
    assert len(copied) == 1
    with pytest.raises(KeyError):
        weights["pooler.dense.weight"]


def test_reading_the_top_layers_reads_no_other(folder):
    checkpoint = load_checkpoint(folder)
    weights, asked = checkpoint.read_weights(), []

    class Recording(Mapping):
        def __getitem__(self, name):
            asked.append(name)
            return weights[name]

        def __iter__(self):
            return iter(weights)

        def __len__(self):
            return len(weights)

    top = dict(read_trainable_weights(replace(checkpoint, read_weights=Recording), 1, None))
    assert top.keys() == {
        name for name, _ in read_trainable_weights(checkpoint, 0, None) if name.startswith("layers.1.")
    }
    assert len(asked) == 16
    assert all(name.startswith("encoder.layer.1.") for name in asked)


def test_shards_give_the_vectors_of_one_file(folder, distilbert_folder, tmp_path, texts):
    for model in (folder, shutil.copytree(distilbert_folder, tmp_path / "other")):
        before = MiniLMEncoder(model, precision="fp32").transform(texts)
        fingerprint = load_checkpoint(model).fingerprint
        shard(model)
        np.testing.assert_allclose(MiniLMEncoder(model, precision="fp32").transform(texts), before, atol=1e-6)
        assert load_checkpoint(model).fingerprint != fingerprint


def test_shards_that_are_missing_or_damaged_are_named(folder):
    second = shard(folder)[1]
    blob = second.read_bytes()
    second.write_bytes(blob[:-100])
    with pytest.raises(OSError, match=r"model-00002-of-00002\.safetensors is damaged"):
        load_checkpoint(folder)
    second.unlink()
    with pytest.raises(OSError, match=r"lists model-00002-of-00002\.safetensors, which .* not in"):
        load_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(OSError, match=r"index\.json is damaged"):
        load_checkpoint(folder)


def test_shards_outside_of_the_folder_are_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match=r"lists \.\./model\.safetensors, which are not in the folder"):
        load_checkpoint(folder)


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("code_ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_bin_file_never_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(OSError, match=r"pytorch_model\.bin is damaged"):
        MiniLMEncoder(folder).transform(["a"])
    assert not (tmp_path / "code_ran").exists()


def test_a_truncated_weight_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"model\.safetensors is damaged or incomplete .* Download it again"):
        load_checkpoint(folder)


def test_weights_of_another_shape_are_refused(folder):
    edit_json(folder / "config.json", vocab_size=7)
    with pytest.raises(
        OSError, match=r"word_embeddings\.weight has the shape \(\d+, 32\), config.json says \(7, 32\)"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.layer.1.intermediate.dense.weight", (65536, 32)),
        ("encoder.layer.0.attention.self.key.bias", (4,)),
        ("encoder.layer.0.output.LayerNorm.weight", (4,)),
        ("embeddings.LayerNorm.bias", (64,)),
        ("embeddings.token_type_embeddings.weight", (2, 16)),
    ],
)
def test_each_weight_has_the_shape_that_the_configuration_says(folder, name, shape, precision):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    assert name in weights
    save_file({**weights, name: torch.ones(shape)}, folder / "model.safetensors")
    message = f"{re.escape(name)} has the shape {re.escape(str(shape))}, and the configuration says"
    with pytest.raises(OSError, match=message):
        MiniLMEncoder(folder, precision=precision, cache=None).transform(["a"])


def test_embeddings_in_a_bin_file_have_the_shape_that_the_configuration_says(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "embeddings.word_embeddings.weight"
    torch.save({**weights, name: weights[name][:-1]}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"word_embeddings\.weight has the shape .* and the configuration says"):
        MiniLMEncoder(folder, cache=None).transform(["a"])


def test_files_of_modules_count_wherever_they_are(make_sentence_transformers_folder, distilbert_folder):
    place = make_sentence_transformers_folder(base=distilbert_folder, dense=16)
    modules = json.loads((place / "modules.json").read_text())
    deep = ".modules/of/another/library"
    (place / deep).parent.mkdir(parents=True)
    (place / modules[-1]["path"]).rename(place / deep)
    modules[-1]["path"] = deep
    (place / "modules.json").write_text(json.dumps(modules))
    before = load_checkpoint(place).fingerprint
    with open(place / deep / "model.safetensors", "ab") as file:
        file.write(b" ")
    assert load_checkpoint(place).fingerprint != before


def test_links_that_lead_nowhere_do_not_count(folder, distilbert_folder, tmp_path):
    other = shutil.copytree(distilbert_folder, tmp_path / "other")
    for place in (folder, other):
        (place / "gone.json").symlink_to(place / "nowhere.json")
        (place / "loop.json").symlink_to(place / "loop.json")
        assert load_checkpoint(place).hidden_size == 32


def test_other_files_in_a_folder_do_not_count(folder, distilbert_folder, tmp_path, monkeypatch):
    other = shutil.copytree(distilbert_folder, tmp_path / "other")
    read = []
    monkeypatch.setattr("skminilm.checkpoints.digests.file_sha256", read.append)
    monkeypatch.setattr("skminilm.checkpoints.folder.file_sha256", lambda path: read.append(path) or "")
    for place in (folder, other):
        MiniLMEncoder(place, cache=place / "vectors").transform(["a"])
        n_read, fingerprint = len(read), load_checkpoint(place).fingerprint
        (place / "train_log.txt").write_text("epoch 1")
        (place / "trainer_state.json").write_text("{}")
        MiniLMEncoder(place, cache=place / "vectors").transform(["b"])
        assert load_checkpoint(place).fingerprint == fingerprint
        assert len(read) == n_read > 0


@pytest.mark.parametrize(
    "name",
    [
        "vocab.txt", "merges.txt", "dict.txt", "bpe.codes", "spiece.model", "source.spm", "adapter_model.bin",
        "pytorch_model-00001-of-00002.bin", "1_Dense/model.safetensors", "a/b/model.safetensors",
    ],
)  # fmt: skip
def test_files_of_every_kind_of_model_count(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert model_files(tmp_path) == [path]


def test_a_file_that_is_removed_meanwhile_is_no_error(tmp_path):
    (tmp_path / "config.json").touch()
    states = file_states([tmp_path / "config.json", tmp_path / "removed"])
    assert [state[0] for state in states] == ["config.json"]


def test_missing_layers_are_refused(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(OSError, match=r"lack .*encoder\.layer\.2"):
        MiniLMEncoder(folder).transform(["a"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "neither config.json nor modules.json"),
        ("model.safetensors", "No weights in"),
        ("tokenizer.json", "No tokenizer in"),
    ],
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(OSError, match=message):
        load_checkpoint(folder)


def test_a_checkpoint_without_a_transformer_names_its_module(folder, make_sentence_transformers_folder):
    (folder / "config.json").unlink()
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(ValueError, match=r"first module is .*models\.StaticEmbedding.*SentenceTransformer\("):
        load_checkpoint(folder)
    complete = make_sentence_transformers_folder()
    (complete / "config.json").unlink()
    with pytest.raises(OSError, match=r"No config\.json in"):
        load_checkpoint(complete)


def test_a_garbled_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json is not valid JSON"):
        load_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(OSError, match="lacks or garbles"):
        load_checkpoint(folder)


def test_fields_that_a_config_leaves_out_are_those_of_transformers():
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    original = transformers.BertConfig()
    config = BertConfig.from_dict({name: getattr(original, name) for name in names})
    for name in ("max_position_embeddings", "type_vocab_size", "layer_norm_eps"):
        assert getattr(config, name) == getattr(original, name)


def test_the_fingerprint_follows_weights_tokenizer_and_config(folder):
    seen = {load_checkpoint(folder).fingerprint}
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    seen.add(load_checkpoint(folder).fingerprint)
    edit_json(folder / "config.json", layer_norm_eps=1e-5)
    seen.add(load_checkpoint(folder).fingerprint)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    seen.add(load_checkpoint(folder).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
def test_the_fingerprint_follows_each_file_of_settings(folder, name):
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    before = load_checkpoint(folder).fingerprint
    changes = {"[CLS]": 2} if name == "added_tokens.json" else {"mask_token": "[MASK]", "x": "y"}
    edit_json(folder / name, **changes)
    assert load_checkpoint(folder).fingerprint != before


def test_a_checkpoint_with_xlmr_vocabulary_runs_on_its_own_sentencepiece_model(xlmr_folder, texts):
    assert isinstance(load_checkpoint(xlmr_folder).tokenizer, SentencePieceTokenizer)
    assert MiniLMEncoder(xlmr_folder).transform(texts).shape == (64, 8)


def test_a_wrong_tokenizer_beside_xlmr_weights_is_refused(xlmr_folder, tmp_path, wordpiece):
    folder = shutil.copytree(xlmr_folder, tmp_path / "model")
    (folder / "sentencepiece.bpe.model").unlink()
    wordpiece.save_pretrained(folder)
    with pytest.raises(ValueError, match="is not the one that its weights were trained with"):
        load_checkpoint(folder)


def test_presets_are_found_by_name_and_by_hub_id():
    assert find_preset("microsoft/Multilingual-MiniLM-L12-H384") is PRESETS["multilingual-minilm"]
    assert PRESETS["multilingual-e5-small"].settings.normalize
    assert PRESETS["paraphrase-multilingual-minilm"].settings.max_length == 128
    assert find_preset("somebody/else") is None


@pytest.mark.parametrize("model", ["no such model", "a/b/c", "", "bad\nname"])
def test_an_unknown_model_lists_the_presets(model):
    with pytest.raises(ValueError, match=r"neither a preset .*multilingual-minilm"):
        load_checkpoint(model)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")


def test_home_is_found_in_the_path_of_a_checkpoint(transformers_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(transformers_folder.parent))
    monkeypatch.setenv("USERPROFILE", str(transformers_folder.parent))
    assert load_checkpoint(f"~/{transformers_folder.name}").folder == transformers_folder


def test_model_of_another_type():
    with pytest.raises(TypeError, match="model must be a str or a path, got int: 3"):
        MiniLMEncoder(3).transform(["a"])


def test_revision_of_a_local_checkpoint(folder):
    for model in ("bundled", folder):
        with pytest.raises(ValueError, match="revision='v1' has no meaning"):
            load_checkpoint(model, "v1")


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("model", ["multilingual-minilm", "somebody/some-model"])
def test_an_uncached_hub_model_fails_soon_and_says_what_to_do(
    tmp_path, monkeypatch, unreachable_hub, model, local
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(OSError, match=r"not in the local cache .*use model='bundled'"):
        MiniLMEncoder(model, local_files_only=local).transform(["a"])
    assert time.monotonic() - began < 5
    assert len(unreachable_hub) == (0 if local else 1)
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".bin", ".safetensors")
    ]


def test_a_name_without_an_owner_may_be_one_of_sentence_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OSError, match=r"set_params\(model=PATH\)\. .*'sentence-transformers/some-model' may be meant"
    ):
        MiniLMEncoder("some-model", local_files_only=True).transform(["a"])


def test_offline_the_hub_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_wanted_files", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(OSError, match=r"revision v7.* downloads are off"):
        load_checkpoint("somebody/some-model", "v7")


def hub_cache(root, source, repo_id, revision):
    """Lay a folder out as the hub's cache does."""
    repo = root / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("a" * 40 if revision == "main" else revision)
    shutil.copytree(source, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    return root


def test_a_cached_hub_model_needs_no_network(
    tmp_path, monkeypatch, transformers_folder, texts, unreachable_hub
):
    repo_id = "somebody/some-model"
    hub_cache(tmp_path, transformers_folder, repo_id, "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    here = MiniLMEncoder(transformers_folder).transform(texts)
    for options, n_asked in (({"local_files_only": True}, 0), ({"revision": "a" * 40}, 1), ({}, 2)):
        _loaded.clear()
        with pytest.warns(UserWarning, match="mean pooling without normalisation is assumed") as caught:
            MiniLMEncoder(repo_id, **options).fit(texts)
        assert caught[0].filename == __file__
        np.testing.assert_array_equal(MiniLMEncoder(repo_id, **options).transform(texts), here)
        assert len(unreachable_hub) == n_asked


def test_a_preset_uses_its_pinned_commit_and_settings(tmp_path, monkeypatch, xlmr_folder):
    preset = PRESETS["paraphrase-multilingual-minilm"]
    hub_cache(tmp_path, xlmr_folder, preset.repo_id, preset.revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoint = load_checkpoint("paraphrase-multilingual-minilm")
    assert checkpoint.defaults.max_length == 128
    assert preset.revision in str(checkpoint.folder)


@pytest.mark.parametrize("model", ["multilingual-e5-small", "intfloat/multilingual-e5-small"])
def test_a_revision_goes_before_that_of_the_preset(monkeypatch, model):
    seen = []

    def download(repo_id, revision, **options):
        seen.append((repo_id, revision))
        raise OSError("enough")

    monkeypatch.setattr("skminilm.checkpoints.hub.download", download)
    with pytest.raises(OSError, match="enough"):
        load_checkpoint(model, "my-branch")
    assert seen == [("intfloat/multilingual-e5-small", "my-branch")]


def test_a_cached_preset_is_neither_asked_for_nor_warned_of(tmp_path, monkeypatch, transformers_folder):
    preset = PRESETS["multilingual-e5-small"]  # its settings are known without modules.json
    hub_cache(tmp_path, transformers_folder, preset.repo_id, preset.revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_wanted_files", lambda *_: pytest.fail("it was asked"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint("multilingual-e5-small").defaults.prompt == "text: "


def test_a_cache_that_may_lack_its_settings_is_not_trusted(
    tmp_path, monkeypatch, make_sentence_transformers_folder
):
    """What AutoModel leaves in the cache has no modules.json, so its pooling would be guessed."""
    folder = make_sentence_transformers_folder("cls")
    hub_cache(tmp_path, folder, "somebody/cls", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_checkpoint("somebody/cls", "a" * 40).defaults.pooling == "cls"
    snapshot = tmp_path / "models--somebody--cls" / "snapshots" / ("a" * 40)
    (snapshot / "modules.json").unlink()
    asked = []
    monkeypatch.setattr(hub, "_wanted_files", lambda *arguments: asked.append(arguments) or 1 / 0)
    with pytest.warns(UserWarning, match=r"holds no modules\.json, and .*: mean pooling"):
        hub.download("somebody/cls", "a" * 40, local_files_only=False)
    assert [arguments[:2] for arguments in asked] == [("somebody/cls", "a" * 40)]


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        ("Could not determine home directory.", OSError, "set the environment variable HF_HUB_CACHE"),
        ("can't start new thread", RuntimeError, "can't start new thread"),
    ],
)
def test_only_a_missing_home_folder_is_called_so(monkeypatch, reason, error, message):
    def snapshot_download(*args, **options):
        raise RuntimeError(reason)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(error, match=message):
        load_checkpoint("somebody/some-model")


def test_the_hub_is_not_asked_again_after_fit(tmp_path, monkeypatch, transformers_folder, unreachable_hub):
    """It could have another commit of the branch by then."""
    hub_cache(tmp_path, transformers_folder, "somebody/some-model", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = MiniLMEncoder("somebody/some-model", cache=None)
    with pytest.warns(UserWarning, match="mean pooling without normalisation is assumed"):
        encoder.fit(["a"])
    monkeypatch.setattr(hub, "download", lambda *args, **options: pytest.fail("it was asked"))
    assert encoder.transform(["a"]).shape == (1, encoder.hidden_size_)


@pytest.mark.parametrize(
    "open_network",
    [
        MiniLMClassifier.from_transformers,
        MiniLMRegressor.from_transformers,
        MiniLMQuestionAnswerer.from_transformers,
        lambda name: MiniLMQuestionAnswerer(name).fit([("Who?", "Ada.")], ["Ada"]),
    ],
    ids=["classes", "numbers", "answers", "fit to answers"],
)
def test_who_pools_by_itself_needs_no_settings_of_the_hub(monkeypatch, open_network):
    seen = []

    def download(*args, settings_known, **options):
        seen.append(settings_known)
        raise OSError("enough")

    monkeypatch.setattr("skminilm.checkpoints.hub.download", download)
    with pytest.raises(OSError, match="enough"):
        open_network("somebody/some-model")
    assert seen == [True]


def test_a_fitted_estimator_knows_its_settings(tmp_path, monkeypatch, transformers_folder, unreachable_hub):
    hub_cache(tmp_path, transformers_folder, "somebody/some-model", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = MiniLMEncoder("somebody/some-model", revision="a" * 40)
    with pytest.warns(UserWarning, match="mean pooling without normalisation is assumed"):
        expected = encoder.fit_transform(["a"])
    monkeypatch.setattr(hub, "_wanted_files", lambda *_: pytest.fail("it was asked"))
    for is_another_process in (False, True):
        if is_another_process:
            _loaded.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(encoder.transform(["a"]), expected)
    with pytest.raises(pytest.fail.Exception, match="it was asked"):
        MiniLMEncoder("somebody/some-model", revision="a" * 40).fit(["a"])


@pytest.mark.parametrize(("asked_for", "expected"), [(10, 10.0), (45, 45.0)])
def test_a_first_download_waits_as_long_as_the_environment_says(tmp_path, monkeypatch, asked_for, expected):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", asked_for)
    timeouts = []
    monkeypatch.setattr(hub, "_wanted_files", lambda *arguments: timeouts.append(arguments[2]) or 1 / 0)
    with pytest.raises(OSError, match="could not be reached"):
        hub.download("somebody/some-model", None, local_files_only=False)
    assert timeouts == [expected]


@pytest.fixture
def silent_hub(monkeypatch):
    """A hub that does not answer before the end of the test; the requests that it still holds."""
    is_over, held = threading.Event(), []

    def repo_info(*_, **__):
        held.append(1)
        is_over.wait(600)
        held.pop()

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    monkeypatch.setattr(hub, "_TIMEOUT_S", 1)
    monkeypatch.setattr(hub, "_FIRST_TIMEOUT_S", 2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 2)
    yield held
    is_over.set()


def test_a_hub_that_never_answers_is_given_up(tmp_path, monkeypatch, silent_hub):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"no answer within 2 s.*model='bundled'"):
        load_checkpoint("somebody/silent")
    assert silent_hub  # nobody has waited for the answer


def test_a_hub_that_never_answers_holds_up_no_cached_model_for_long(
    tmp_path, monkeypatch, transformers_folder, silent_hub
):
    hub_cache(tmp_path, transformers_folder, "somebody/silent", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match="no answer within 1 s"):
        load_checkpoint("somebody/silent")
    assert silent_hub


HUB = """
import hashlib, http.server, json, pathlib, urllib.parse

ROOT = pathlib.Path({root!r})
COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = urllib.parse.unquote(self.path)
        files = [file for file in ROOT.rglob("*") if file.is_file()]
        digest = lambda file: hashlib.sha1(file.read_bytes()).hexdigest()
        if "/resolve/" in path:
            file = ROOT / path.split("/resolve/")[1].split("/", 1)[1].split("?")[0]
            return self.answer(file.read_bytes(), {{"X-Repo-Commit": COMMIT, "ETag": digest(file)}})
        names = [str(file.relative_to(ROOT)) for file in files]
        found = {{"id": "somebody/some-model", "sha": COMMIT, "siblings": [{{"rfilename": name}} for name in names]}}
        if "/tree/" in path:
            found = [
                {{"type": "file", "path": name, "size": file.stat().st_size, "oid": digest(file)}}
                for name, file in zip(names, files)
            ]
        self.answer(json.dumps(found).encode(), {{"Content-Type": "application/json"}})

    do_HEAD = do_GET

    def answer(self, content, headers):
        self.send_response(200)
        for name, value in {{**headers, "Content-Length": len(content)}}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_what_was_downloaded_needs_no_network_later(tmp_path, make_sentence_transformers_folder):
    """From a repository with weights in two formats, of which one is fetched."""
    repository = make_sentence_transformers_folder("cls")
    (repository / "pytorch_model.bin").write_bytes(b"not fetched")
    command = [sys.executable, "-c", HUB.format(root=str(repository))]
    download = (
        "from skminilm.checkpoints import load_checkpoint\n"
        "for revision in ('a' * 40, None):\n"
        "    print(load_checkpoint('somebody/some-model', revision).defaults.pooling)"
    )

    def run(**environment):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), **environment}
        environment.pop("HF_HUB_CACHE", None)
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", download], env=environment, capture_output=True, text=True
        )

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        first = run(HF_ENDPOINT=address)
        server.kill()
    assert first.stdout.split() == ["cls", "cls"], first.stderr
    assert not list((tmp_path / "home").rglob("pytorch_model.bin"))
    later = run(HF_HUB_OFFLINE="1")
    assert later.stdout.split() == ["cls", "cls"], later.stderr


def test_a_branch_is_looked_up_and_a_commit_is_not(tmp_path, monkeypatch, make_sentence_transformers_folder):
    hub_cache(tmp_path, make_sentence_transformers_folder("cls"), "somebody/cls", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(
        hub, "_wanted_files", lambda repo_id, revision, timeout: asked.append(revision) or 1 / 0
    )
    for revision in ("main", None, "a" * 40):
        hub.download("somebody/cls", revision, local_files_only=False)
    assert asked == ["main", None]


def test_a_path_is_never_a_preset(tmp_path, monkeypatch, transformers_folder):
    monkeypatch.chdir(tmp_path)
    for name in ("bundled", "multilingual-minilm"):
        shutil.copytree(transformers_folder, tmp_path / name)
        assert load_checkpoint(tmp_path / name).hidden_size == 32
        assert load_checkpoint(type(tmp_path)(name)).hidden_size == 32
    assert load_checkpoint("bundled").hidden_size == 384


def test_another_large_vocabulary_is_not_taken_for_xlmr(tmp_path, wordpiece):
    tiny_bert(300_000, hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    wordpiece.save_pretrained(tmp_path)
    assert MiniLMEncoder(tmp_path).transform(["a"]).shape == (1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "5 heads do not divide the hidden size 32"),
        ({"max_position_embeddings": 600}, r"position_embeddings\.weight has the shape \(64, 32\)"),
        ({"num_hidden_layers": "x"}, r"lacks or garbles a field \(ValueError"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(OSError, match=message):
        load_checkpoint(folder)


def test_damaged_weights_of_another_architecture_are_named(distilbert_folder, tmp_path):
    folder = shutil.copytree(distilbert_folder, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"model\.safetensors is damaged"):
        load_checkpoint(folder)


def test_an_incomplete_cache_is_not_used(tmp_path, monkeypatch, transformers_folder):
    hub_cache(tmp_path, transformers_folder, "somebody/partial", "main")
    (tmp_path / "models--somebody--partial" / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="not in the local cache"):
        hub.download("somebody/partial", None, local_files_only=True)


def test_an_incomplete_cache_of_shards_is_not_used(tmp_path, monkeypatch, folder):
    shards = shard(folder)
    hub_cache(tmp_path / "hub", folder, "somebody/sharded", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.warns(UserWarning, match="mean pooling without normalisation is assumed"):
        snapshot = hub.download("somebody/sharded", None, local_files_only=True)
    (snapshot / shards[1].name).unlink()
    with pytest.raises(OSError, match="not in the local cache"):
        hub.download("somebody/sharded", None, local_files_only=True)


@pytest.fixture
def slow_download(monkeypatch, transformers_folder):
    """A download that begins, and ends when it is told to; the ids that were asked for."""
    began, may_end, asked = threading.Event(), threading.Event(), []

    def download(repo_id, revision, **options):
        asked.append(repo_id)
        if repo_id == "somebody/slow":
            began.set()
            assert may_end.wait(120)
        return transformers_folder

    _loaded.clear()
    monkeypatch.setattr(hub, "download", download)
    yield began, may_end, asked
    may_end.set()


def test_a_download_holds_up_nobody_else(slow_download):
    began, may_end, asked = slow_download
    with ThreadPoolExecutor(3) as threads:
        slow = [threads.submit(load_checkpoint, "somebody/slow") for _ in range(2)]
        assert began.wait(120)
        for model in ("bundled", "somebody/other"):
            assert threads.submit(load_checkpoint, model).result(timeout=120).hidden_size
        assert not any(future.done() for future in slow)
        may_end.set()
        assert slow[0].result(timeout=120) is slow[1].result(timeout=120)
    assert sorted(asked) == ["somebody/other", "somebody/slow"]


def test_a_download_that_failed_is_tried_again(slow_download, monkeypatch):
    def fail(*args, **options):
        raise OSError("no hub")

    with monkeypatch.context() as patch:
        patch.setattr(hub, "download", fail)
        with pytest.raises(OSError, match="no hub"):
            load_checkpoint("somebody/model")
    assert load_checkpoint("somebody/model").hidden_size == 32


def test_a_fork_during_a_download_waits_for_nobody(slow_download, transformers_folder):
    import multiprocessing

    began, may_end, _ = slow_download
    with ThreadPoolExecutor(1) as threads:
        threads.submit(load_checkpoint, "somebody/slow")
        assert began.wait(120)
        try:
            with multiprocessing.get_context("fork").Pool(1) as processes:
                assert processes.apply_async(_load_in_child, [transformers_folder]).get(timeout=120) == 32
        finally:
            may_end.set()


def _load_in_child(folder):
    hub.download = lambda *args, **options: folder
    return load_checkpoint("somebody/slow").hidden_size


@pytest.mark.network
def test_a_real_download(tmp_path):
    vectors = MiniLMEncoder("multilingual-e5-small").transform(["query"])
    assert vectors.shape == (1, 384)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin", "onnx/model.onnx"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "other/model.safetensors"], ["pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ),
        (
            [
                "model.safetensors",
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/pytorch_model.bin",
            ],
            [
                "model.safetensors",
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/pytorch_model.bin",
            ],
        ),
        (
            ["0_Transformer/model.safetensors", "0_Transformer/pytorch_model.bin", "0_Transformer/vocab.txt"],
            ["0_Transformer/model.safetensors", "0_Transformer/vocab.txt"],
        ),
    ],
)
def test_one_format_of_the_weights_is_downloaded(monkeypatch, tmp_path, files, wanted):
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns, local_files_only):
        if local_files_only:
            raise LocalEntryNotFoundError("nothing here")
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path)

    siblings = [SimpleNamespace(rfilename=name) for name in files]
    monkeypatch.setattr(
        "huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(siblings=siblings)
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub.download("somebody/model", "v1", local_files_only=False) == tmp_path
    [(repo_id, revision, patterns)] = asked
    assert (repo_id, revision) == ("somebody/model", "v1")
    assert list(filter_repo_objects(files, allow_patterns=patterns)) == wanted


def test_the_hub_is_asked_for_the_files_of_a_revision(monkeypatch):
    seen = []
    files = [SimpleNamespace(rfilename="model.safetensors")]
    monkeypatch.setattr(
        "huggingface_hub.HfApi.repo_info",
        lambda self, repo_id, **options: (
            seen.append((repo_id, options["revision"])) or SimpleNamespace(siblings=files)
        ),
    )
    assert "model.safetensors" in hub._wanted_files("somebody/some-model", "v7", 5.0)
    assert seen == [("somebody/some-model", "v7")]


def test_a_cached_checkpoint_whose_network_is_a_folder_of_its_own(tmp_path, monkeypatch, folder, texts):
    expected = MiniLMEncoder(folder, precision="fp32").transform(texts)
    repository = tmp_path / "repository"
    shutil.copytree(folder, repository / "0_Transformer")
    (repository / "1_Pooling").mkdir()
    (repository / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    modules = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{number}_{name}"}
        for number, name in enumerate(("Transformer", "Pooling"))
    ]
    (repository / "modules.json").write_text(json.dumps(modules))
    hub_cache(tmp_path / "hub", repository, "somebody/older", "a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = MiniLMEncoder("somebody/older", revision="a" * 40, precision="fp32").transform(texts)
    np.testing.assert_array_equal(found, expected)


def test_a_repository_without_torch_weights_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(siblings=[]))
    with pytest.raises(OSError, match=r"has none of model\.safetensors, .*pytorch_model\.bin"):
        load_checkpoint("somebody/empty")


def test_a_plain_vocab_txt(folder, texts):
    """The oldest layout of a BERT tokenizer gives the ids of the newest."""
    before = MiniLMEncoder(folder, precision="fp32").transform(texts)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for file in folder.glob("tokenizer*.json"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    np.testing.assert_array_equal(MiniLMEncoder(folder, precision="fp32").transform(texts), before)


def test_an_id_without_a_word_embedding_is_named(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 5_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert MiniLMEncoder(folder).transform(["where is the card"]).shape[0] == 1
    with pytest.raises(ValueError, match=r"gives the id 5000, and the network has \d+ word embeddings"):
        MiniLMEncoder(folder).transform(["zzz"])
    with pytest.raises(ValueError, match="gives the id 5000"):
        MiniLMClassifier(folder, max_length=32, trainable=1).fit(["zzz", "where"], [0, 1])


def test_an_embedded_tokenizer_knows_how_many_embeddings_there_are(transformers_folder):
    state = embed_checkpoint(load_checkpoint(transformers_folder), transformers_folder, None)
    opened = open_embedded({**state, "config": {**state["config"], "vocab_size": 5}})
    with pytest.raises(ValueError, match="the network has 5 word embeddings"):
        opened.tokenizer.encode(["Where is my parcel?"], max_length=9)


def test_the_digest_of_an_embedded_checkpoint_follows_its_settings(transformers_folder):
    state = embed_checkpoint(load_checkpoint(transformers_folder), transformers_folder, None)
    for name, changes in (("defaults", {"pooling": "cls"}), ("config", {"layer_norm_eps": 0.5})):
        assert content_digest({**state, name: {**state[name], **changes}}) != state["digest"]
    assert content_digest({**state, "tokenizer_kind": "sentencepiece"}) != state["digest"]
