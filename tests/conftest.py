"""Fixtures: no network, real texts, tiny checkpoints in every layout, the reference network."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import socket
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import skminilm
from skminilm import clear_cache
from skminilm.checkpoints import bundled
from skminilm.checkpoints.loading import _loaded
from skminilm.checkpoints.sentencepiece_tokenizer import build_model_proto
from skminilm.datasets import load_support_requests
from skminilm.engine.kernels import _library

PACKAGE = Path(skminilm.__file__).parent

# What a processor without AMX or VNNI runs, on one with it: "tiles" or "vnni".
if "SKMINILM_TESTS_WITHOUT" in os.environ:
    ctypes.c_int.in_dll(_library.load(), f"{os.environ['SKMINILM_TESTS_WITHOUT']}_allowed").value = 0

# The same examples in every run, however long they take. --hypothesis-profile=default draws others.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def pytest_configure():
    """Share the processor's cores among the workers of ``-n``."""
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
        import torch

        n_threads = max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
        torch.set_num_threads(n_threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))  # of the processes that tests start


@pytest.fixture(autouse=True)
def _no_checkpoint_of_the_hub_stays_open():
    """One test's hub is not another's."""
    yield
    for key in [key for key in _loaded if key[0] == "hub"]:
        del _loaded[key]


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch):
    """Block every connection, and let no test pass in which this package tried one, unless it is marked ``network``.

    An error alone would not do: the package takes it for a hub that is down.
    """
    if request.node.get_closest_marker("network"):
        yield
        return
    tried_here = []

    def refuse(*arguments, **_):
        if any(Path(frame.filename).is_relative_to(PACKAGE) for frame in traceback.extract_stack()):
            tried_here.append(arguments)
        raise ConnectionRefusedError(f"a connection was tried: {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried_here


@pytest.fixture
def unreachable_hub(monkeypatch):
    """A hub that may be asked, in vain; the names that were asked for."""
    asked = []

    def repo_info(self, repo_id, **_):
        asked.append(repo_id)
        raise ConnectionRefusedError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    return asked


@pytest.fixture(autouse=True)
def empty_cache():
    clear_cache()


@pytest.fixture
def pretend_gpus(monkeypatch):
    """Return a function that makes torch see GPUs of these names, whatever it was built for."""

    def pretend(names, current=0):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])

    return pretend


@pytest.fixture
def encoded(monkeypatch):
    """The texts that the network really computes."""
    from skminilm.engine.packed_model import PackedModel

    seen = []
    original = PackedModel.encode

    def counting(self, texts, *args, **options):
        seen.extend(texts)
        return original(self, texts, *args, **options)

    monkeypatch.setattr(PackedModel, "encode", counting)
    return seen


@pytest.fixture(scope="session")
def requests():
    return load_support_requests()


@pytest.fixture(scope="session")
def texts(requests):
    """64 real texts, 4 in each of 16 languages."""
    return requests.data[::16]


@pytest.fixture(scope="session")
def english(requests):
    """64 English texts and their intents."""
    rows = requests.languages == "en"
    X = [text for text, row in zip(requests.data, rows, strict=True) if row]
    return X, np.array(requests.target_names)[requests.target[rows]]


@pytest.fixture(scope="session")
def split(requests):
    """Train on five English requests per intent; test on the others, in four languages."""
    texts, y = np.array(requests.data, dtype=object), np.array(requests.target_names)[requests.target]
    is_new = requests.groups % 8 >= 5
    train = (requests.languages == "en") & ~is_new
    test = np.isin(requests.languages, ["en", "ru", "zh", "sw"]) & is_new
    return texts[train].tolist(), y[train], texts[test].tolist(), y[test]


# Capitals, marks, two spaces, other scripts, next to nothing and nothing.
TEXTS = [
    "Where is MY parcel?",
    "¿Dónde está  mi paquete?",
    "Μην αγοράσεις ΤΙΠΟΤΑ",
    "小包はどこですか",
    "a",
    "",
]


def tiny_bert(vocab_size, **changes):
    import torch
    from transformers import BertConfig, BertModel

    options = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=vocab_size,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**{**options, **changes}), add_pooling_layer=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def train_wordpiece(texts, vocab_size):
    """A small WordPiece tokenizer trained on texts, as transformers wraps it."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def wordpiece(requests):
    return train_wordpiece(requests.data, 1500)


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory, wordpiece):
    """A tiny BERT as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("transformers")
    tiny_bert(len(wordpiece)).save_pretrained(folder)
    wordpiece.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_sentence_transformers_folder(tmp_path_factory, transformers_folder):
    """Write a tiny model as ``SentenceTransformer.save`` does."""

    from _reference import save_sentence_transformer

    def make(pooling="mean", normalize=True, prompt="", base=transformers_folder, dense=None):
        options = {"prompts": {"query": prompt}, "default_prompt_name": "query"} if prompt else {}
        folder = tmp_path_factory.mktemp("sentence_transformers")
        save_sentence_transformer(
            folder, base, max_length=24, pooling=pooling, normalize=normalize, dense=dense, **options
        )
        return folder

    return make


@pytest.fixture(scope="session")
def two_folders(tmp_path_factory, wordpiece):
    """Two tiny networks that differ in their embeddings alone."""
    import torch

    folders = [tmp_path_factory.mktemp("one_of_two") for _ in range(2)]
    for number, folder in enumerate(folders):
        model = tiny_bert(len(wordpiece))
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.mul_(1 + number)
        model.save_pretrained(folder)
        wordpiece.save_pretrained(folder)
    return folders


@pytest.fixture(scope="session")
def distilbert_folder(tmp_path_factory, wordpiece):
    """A tiny network of another architecture."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    folder = tmp_path_factory.mktemp("other")
    config = DistilBertConfig(
        vocab_size=len(wordpiece), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DistilBertModel(config).save_pretrained(folder)
    wordpiece.save_pretrained(folder)
    return folder


def xlmr_vocabulary():
    """The file of the real vocabulary, byte by byte as the package builds it."""
    built = []

    def keep(*arguments):
        built.append(build_model_proto(*arguments))
        return built[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "build_model_proto", keep)
        bundled.load_bundled()
    return built[0]


@pytest.fixture(scope="session")
def xlmr_folder(tmp_path_factory):
    """A tiny network with the real vocabulary, as the hub repositories lay it out."""
    folder = tmp_path_factory.mktemp("xlmr")
    tiny_bert(250_037, hidden_size=8, num_attention_heads=2, intermediate_size=16).save_pretrained(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(xlmr_vocabulary())
    return folder


def write_same_xlmr(folder):
    """Write a tiny network with the real vocabulary, of the same bytes whatever is installed: saved files go by them."""
    folder.mkdir()
    sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    config = {
        "model_type": "bert",
        **sizes,
        "vocab_size": 250_037,
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentencepiece.bpe.model").write_bytes(xlmr_vocabulary())
    shapes = {
        "embeddings.word_embeddings.weight": (250_037, 8),
        "embeddings.position_embeddings.weight": (64, 8),
        "embeddings.token_type_embeddings.weight": (1, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    for layer in range(2):
        matrices = {
            "attention.self.query": (8, 8),
            "attention.self.key": (8, 8),
            "attention.self.value": (8, 8),
            "attention.output.dense": (8, 8),
            "attention.output.LayerNorm": (8,),
            "intermediate.dense": (16, 8),
            "output.dense": (8, 16),
            "output.LayerNorm": (8,),
        }
        for name, shape in matrices.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, end]}
        place = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    weights = np.random.RandomState(0).random_sample(place // 4) - 0.5  # whose numbers NumPy never changes
    for name, tensor in header.items():
        if name.endswith("LayerNorm.weight"):
            start, end = tensor["data_offsets"]
            weights[start // 4 : end // 4] += 1
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded + weights.astype("<f4").tobytes())
    return folder


@pytest.fixture(scope="session")
def reference():
    """transformers' BertModel with the bundled weights: texts -> pooled vectors, not normalised."""
    from _reference import load_reference, pooled_vectors

    return functools.partial(pooled_vectors, load_reference())


def largest_change(first, second):
    """Return by how much the trained weights of two estimators differ at most."""
    return max(np.abs(array - second.weights_[name]).max() for name, array in first.weights_.items())


def resident_mib():
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def attention_by_definition(qkv, lengths, n_heads):
    """Attention of each sequence of a pack to itself, by the formula."""
    import torch

    outputs = []
    for tokens in qkv[: sum(lengths)].split(lengths):
        query, key, value = tokens.unflatten(1, (3, n_heads, -1)).permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        outputs.append((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def plain_hidden_states(weights, pack, config):
    """The forward pass on matrices as they are, with gradients: what training runs."""
    from skminilm.engine.forward import embed, encoder_layer
    from skminilm.engine.linear import PlainLinear

    dtype = weights["layers.0.output_norm.weight"].dtype
    hidden = embed(weights, pack, config.layer_norm_eps, dtype)
    for layer in range(config.num_hidden_layers):
        hidden = encoder_layer(hidden, weights, layer, pack, config, PlainLinear(weights))
    return hidden


@pytest.fixture
def computed(monkeypatch):
    """How many sequences each call of the engine computes, in a list that grows."""
    from skminilm.engine.packed_model import PackedModel

    counts = []
    original = PackedModel.start_reduced

    def counted(self, batch, rows, reduce):
        counts.append(len(rows))
        return original(self, batch, rows, reduce)

    monkeypatch.setattr(PackedModel, "start_reduced", counted)
    return counts


def move_into_module(folder):
    """Lay a network's folder out as older sentence-transformers did, all of it in one of a module; return the folder."""
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "0_Transformer" / path.name)
    module = {"idx": 0, "name": "0", "path": "0_Transformer"}
    module["type"] = "sentence_transformers.models.Transformer"
    (folder / "modules.json").write_text(json.dumps([module]))
    return folder


def edit_json(path, **changes):
    """Change some fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def typed_columns(values):
    """The types that libraries have for text, with the same values."""
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    dictionary = pa.array(values).dictionary_encode()
    return {
        "pandas string": pd.Series(values, dtype="string[python]"),
        "pandas string array": pd.array(values, dtype="string[python]"),
        "pandas string in pyarrow": pd.Series(values, dtype="string[pyarrow]"),
        "pandas on pyarrow": pd.Series(values, dtype=pd.ArrowDtype(pa.string())),
        "pandas on large pyarrow": pd.Series(values, dtype=pd.ArrowDtype(pa.large_string())),
        "pandas on pyarrow dictionary": pd.Series(values, dtype=pd.ArrowDtype(dictionary.type)),
        "pandas Categorical": pd.Categorical(values),
        "pandas category frame": pd.DataFrame({"name": pd.Categorical(values)}),
        "polars category": pl.Series(values, dtype=pl.Categorical),
        "polars enum": pl.Series(values, dtype=pl.Enum(sorted(set(values)))),
        "polars category frame": pl.DataFrame({"name": pl.Series(values, dtype=pl.Categorical)}),
        "pyarrow large": pa.array(values, pa.large_string()),
        "pyarrow dictionary": dictionary,
        "pyarrow chunked dictionary": pa.chunked_array([dictionary]),
        "pyarrow dictionary table": pa.table({"name": dictionary}),
        "pyarrow record batch": pa.record_batch({"name": pa.array(values)}),
        "pyarrow dictionary record batch": pa.record_batch({"name": dictionary}),
    }


@pytest.fixture
def write_hub_copy(tmp_path, monkeypatch):
    """Write configurations of a data set as the Hugging Face hub has them, with the card that declares them."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")

    def write(folder, features, configs):
        """`configs` holds the rows of each split of each configuration; a second call adds to the first."""
        readme = folder / "README.md"
        card = readme.read_text().split("---\n")[1] if readme.exists() else "configs:\n"
        for config, splits in configs.items():
            card += f"- config_name: {config}\n  data_files:\n"
            for split, rows in splits.items():
                path = folder / config / f"{split}-00000-of-00001.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = [dict(zip(features, row, strict=True)) for row in rows]
                datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(path)
                card += f"  - split: {split}\n    path: {config}/{split}-*\n"
        readme.write_text(f"---\n{card}---\n# A copy\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def write_xnli_copy(write_hub_copy):
    """Write XNLI as facebook/xnli has it: (premise, hypothesis, label) of each split of each language."""
    from datasets import ClassLabel, Translation, TranslationVariableLanguages, Value

    labels = ClassLabel(names=["entailment", "neutral", "contradiction"])

    def write(folder, configs):
        languages = list(configs)
        together = (
            dict.fromkeys(languages, "p"),
            {"language": languages, "translation": ["h"] * len(languages)},
            0,
        )
        write_hub_copy(
            folder,
            {
                "premise": Translation(languages),
                "hypothesis": TranslationVariableLanguages(languages),
                "label": labels,
            },
            {"all_languages": {"test": [together]}},
        )
        features = {"premise": Value("string"), "hypothesis": Value("string"), "label": labels}
        return write_hub_copy(folder, features, configs)

    return write


@pytest.fixture
def write_questions_copy(write_hub_copy):
    """Write questions as facebook/mlqa has them: (context, question, answers, id) of each split of each config."""
    from datasets import Sequence, Value

    features = {
        "context": Value("string"),
        "question": Value("string"),
        "answers": Sequence({"answer_start": Value("int32"), "text": Value("string")}),
        "id": Value("string"),
    }
    return lambda folder, configs: write_hub_copy(folder, features, configs)


@pytest.fixture
def reset_torch_defaults():
    """Set torch's default dtype and device back; once more at the end of the test."""
    import torch

    def reset():
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)

    yield reset
    reset()
