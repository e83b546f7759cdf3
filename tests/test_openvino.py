import gc
import importlib.util
import locale
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_json

from skminilm import MiniLMEncoder, clear_cache
from skminilm._cache import memory_cache
from skminilm.checkpoints import load_checkpoint
from skminilm.engine import release_models
from skminilm.engine.hardware import cpu_has_bf16

if importlib.util.find_spec("nncf") is None:
    pytest.skip("the extra openvino is not installed", allow_module_level=True)

from skminilm.engine import openvino_graph, openvino_model
from skminilm.engine._openvino_import import import_silently


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """Quantised graphs of the tests stay out of the user's cache, but serve all tests."""
    folder = tmp_path_factory.getbasetemp() / "skminilm-cache"
    monkeypatch.setenv("SKMINILM_CACHE", str(folder))
    return folder


def encode(texts, precision="fp32", **options):
    return MiniLMEncoder(backend="openvino", precision=precision, cache=None, **options).transform(texts)


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def mixed(requests):
    """Real texts from 3 to 300 tokens."""
    return [*requests.data[::9], *(" ".join(requests.data[i : i + 20]) for i in (0, 300, 700)), "a", ""]


# Without the instructions OpenVINO takes thirty times as long for it as for float32.
bf16 = pytest.param("bf16", marks=pytest.mark.skipif(not cpu_has_bf16(), reason="no bfloat16 here"))


@pytest.mark.parametrize("precision", ["fp32", bf16, "auto"])
def test_agrees_with_torch(mixed, precision):
    bound = 0.99999 if precision == "fp32" else 0.9999
    expected = MiniLMEncoder(precision="fp32", cache=None, normalize=False).transform(mixed)
    assert cosines(encode(mixed, precision, normalize=False), expected).min() >= bound


@pytest.fixture
def decimal_commas(tmp_path, monkeypatch):
    """Write numbers as in German."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef here")
    command = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no sources of locales here")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
    yield
    locale.setlocale(locale.LC_NUMERIC, before)


def test_graphs_are_kept_as_they_are_in_any_locale(decimal_commas, tmp_path):
    ov, ops = openvino_graph.ov, openvino_graph.ops
    numbers = ops.parameter([4], ov.Type.f32)
    norm = ops.mvn(numbers, ops.constant([0], ov.Type.i64), True, 1e-3, "inside_sqrt")
    openvino_graph.write_graphs([ov.Model([norm], [numbers])], tmp_path / "graphs")
    (graph,) = openvino_graph.read_graphs(tmp_path / "graphs", 1)
    found = ov.compile_model(graph, "CPU")(np.array([1, 2, 3, 4], np.float32))[0]
    np.testing.assert_allclose(found, np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25 + 1e-3), rtol=1e-5)
    assert locale.localeconv()["decimal_point"] == ","  # the user's own again


def test_bars_are_hidden_where_the_locale_has_no_characters_for_them():
    code = (
        "from skminilm.engine import openvino_graph\n"
        "with openvino_graph._quiet(): print('\\u2022')\n"
        "print('a')"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **plain}, capture_output=True, text=True, timeout=600
    )
    assert result.stdout == "a\n", result.stderr


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_other_poolings(texts, pooling):
    expected = MiniLMEncoder(precision="fp32", cache=None, pooling=pooling).transform(texts[:9])
    np.testing.assert_allclose(encode(texts[:9], pooling=pooling), expected, atol=2e-5)


def test_order_and_batches_do_not_matter(mixed):
    together = encode(mixed)
    order = np.random.default_rng(0).permutation(len(mixed))
    shuffled = encode([mixed[i] for i in order], batch_tokens=300)
    assert np.abs(shuffled - together[order]).max() <= 2e-5


def test_several_threads_share_a_model(mixed):
    mixed = mixed[::3]
    expected = encode(mixed)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encode(mixed), range(8)):
            assert np.abs(found - expected).max() <= 2e-5


@pytest.mark.parametrize("n_workers", [1, 3])
def test_threads_are_shared_among_workers(texts, monkeypatch, n_workers):
    expected = encode(texts)
    monkeypatch.setattr(openvino_model, "_MAX_WORKERS", n_workers)
    before = torch.get_num_threads()
    release_models()
    try:
        torch.set_num_threads(3)
        found = encode(texts)
    finally:
        torch.set_num_threads(before)
        release_models()
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_without_the_compiled_attention(mixed, monkeypatch, precision):
    expected = encode(mixed, precision)
    monkeypatch.setattr(openvino_model, "can_use_varlen", lambda *args: False)
    release_models()
    found = encode(mixed, precision)
    release_models()
    assert cosines(found, expected).min() >= (0.999999 if precision == "fp32" else 0.9998)


def test_a_model_computes_before_several_threads_do(texts, monkeypatch):
    """Where two threads are the first to use NumPy through OpenVINO, they can wait for each other for ever."""
    threads = []
    original = openvino_model._Network.hidden_states

    def hidden_states(self, *args):
        threads.append(threading.get_ident())
        return original(self, *args)

    monkeypatch.setattr(openvino_model._Network, "hidden_states", hidden_states)
    release_models()
    encode(texts)
    assert threads[0] == threading.get_ident()
    assert threading.get_ident() not in threads[1:]


def test_nodes_live_as_long_as_their_model(texts):
    from skminilm.engine.openvino_graph import Attention

    def count():
        gc.collect()
        return sum(type(thing) is Attention for thing in gc.get_objects())

    release_models()
    before = count()
    encode(texts[:3])
    loaded = count()
    assert loaded > before
    for n in range(4, 8):  # other sizes of packs
        encode(texts[:n])
    assert count() == loaded
    release_models()
    assert count() == before


@pytest.mark.slow
def test_int8_is_near_fp32_in_every_language(requests):
    texts = requests.data[1::16]
    expected = MiniLMEncoder(precision="fp32", cache=None).transform(texts)
    found = encode(texts, "int8")
    assert cosines(found, expected).min() >= 0.995
    assert np.abs(found - expected).max() > 1e-4  # it really is another precision


def test_the_quantised_graph_is_kept_and_found_again(transformers_folder, texts, own_folder, monkeypatch):
    options = dict(model=transformers_folder, calibration_texts=texts[:4])
    first = encode(texts, "int8", **options)
    release_models()

    def fail(*args):
        raise AssertionError("quantised again")

    monkeypatch.setattr(openvino_model, "quantize_graph", fail)
    np.testing.assert_array_equal(encode(texts, "int8", **options), first)
    release_models()
    with pytest.raises(AssertionError, match="quantised again"):  # other texts, another graph
        encode(texts, "int8", model=transformers_folder, calibration_texts=texts[4:8])


def test_a_damaged_graph_is_made_again(transformers_folder, texts, own_folder):
    options = dict(model=transformers_folder, calibration_texts=texts[:5])
    before = set(own_folder.rglob("*.bin"))
    first = encode(texts, "int8", **options)
    graph = max(set(own_folder.rglob("*.bin")) - before)
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x7f")
    release_models()
    with pytest.warns(UserWarning, match="The quantised graph in .* is damaged"):
        found = encode(texts, "int8", **options)
    np.testing.assert_array_equal(found, first)


def test_a_graph_of_another_user_is_left_alone(tmp_path, monkeypatch):
    def is_dir(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "is_dir", is_dir)
    with pytest.warns(UserWarning, match=r"may not be read \(Permission denied\): it is .*SKMINILM_CACHE"):
        assert openvino_graph.read_graphs(tmp_path, 1) is None
    monkeypatch.undo()
    assert tmp_path.is_dir()


@pytest.mark.parametrize("damage", [b"\xff\xfe"])
def test_a_checksum_that_is_no_text_is_damage(transformers_folder, texts, own_folder, damage):
    options = dict(model=transformers_folder, calibration_texts=[*texts[:3], repr(damage)])
    before = set(own_folder.rglob("sha256"))
    encode(texts[:4], "int8", **options)
    (checksum,) = set(own_folder.rglob("sha256")) - before
    checksum.write_bytes(damage)
    release_models()
    with pytest.warns(UserWarning, match="The quantised graph in .* is damaged"):
        encode(texts[:4], "int8", **options)


def test_without_a_home_folder(monkeypatch):
    def no_home(*_):
        raise RuntimeError("Could not determine home directory.")

    seen, before = [], os.environ.get("HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(openvino_graph.platformdirs, "user_cache_path", no_home)
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", lambda name: seen.append((name, os.environ["HOME"])))
        import_silently("openvino")
    assert seen == [("openvino", os.sep)]
    assert os.environ.get("HOME") == before
    monkeypatch.delenv("SKMINILM_CACHE")
    with pytest.raises(OSError, match="no home folder: set the environment variable SKMINILM_CACHE"):
        openvino_graph.quantized_folder("fingerprint", ())


def test_a_graph_that_cannot_be_kept_is_used(transformers_folder, texts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SKMINILM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept in .*SKMINILM_CACHE"):
        found = encode(texts[:4], "int8", model=transformers_folder, calibration_texts=texts[8:12])
    assert np.isfinite(found).all()


def test_what_ended_processes_left_of_a_graph_is_deleted_after_a_day(tmp_path):
    left = tmp_path / ".skminilm-writing-x"
    (left / "new").mkdir(parents=True)
    for path in (left / "new", left):
        os.utime(path, (time.time() - 2 * 24 * 60 * 60,) * 2)
    ov, ops = openvino_graph.ov, openvino_graph.ops
    numbers = ops.parameter([4], ov.Type.f32)
    openvino_graph.write_graphs([ov.Model([numbers], [numbers])], tmp_path / "graphs")
    assert [path.name for path in tmp_path.iterdir()] == ["graphs"]


@pytest.mark.filterwarnings("ignore:.*max_length=24")
def test_vectors_do_not_depend_on_which_checkpoint_was_used_first(
    make_sentence_transformers_folder, texts, tmp_path, monkeypatch
):
    first, second = make_sentence_transformers_folder(prompt="where is: "), tmp_path / "second"
    shutil.copytree(first, second)
    edit_json(second / "config_sentence_transformers.json", prompts={"query": "the invoice of "})
    folders = [first, second]
    assert load_checkpoint(first).fingerprint == load_checkpoint(second).fingerprint
    options = dict(precision="int8", prompt=None, max_length=24, calibration_texts=texts[:6])

    def of_second(first):
        monkeypatch.setenv("SKMINILM_CACHE", str(tmp_path / f"cache {len(first)}"))
        release_models()
        clear_cache()
        for folder in first:
            MiniLMEncoder(folder, backend="openvino", **options).transform(texts[:8])
        return MiniLMEncoder(folders[1], backend="openvino", **options).transform(texts[:8])

    np.testing.assert_array_equal(of_second([folders[0]]), of_second([]))


def test_cached_vectors_of_backends_and_calibrations_are_apart(transformers_folder, texts):
    def cached(**options):
        return MiniLMEncoder(transformers_folder, **options).transform(texts[:8])

    plain = cached(precision="fp32")
    assert not np.array_equal(
        cached(precision="int8", backend="openvino", calibration_texts=texts[:4]), plain
    )
    a = cached(precision="int8", backend="openvino", calibration_texts=texts[:4])
    b = cached(precision="int8", backend="openvino", calibration_texts=["x"])
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("calibration", "error"),
    [
        ("bare", TypeError),
        ([], ValueError),
        ([1], TypeError),
        ([None], ValueError),
        ([("a", "b")], ValueError),
    ],
)
def test_bad_calibration_texts(calibration, error):
    with pytest.raises(error, match="calibration_texts"):
        encode(["a"], "int8", calibration_texts=calibration)


def test_other_architectures_are_refused(distilbert_folder):
    with pytest.raises(ValueError, match="backend='openvino' needs a BERT-shaped checkpoint"):
        encode(["a"], model=distilbert_folder)


def test_missing_packages_say_what_to_install(monkeypatch, texts):
    import importlib.util

    release_models()
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else original(name))
    with pytest.raises(ImportError, match=r"needs nncf: install with pip install 'skminilm\[openvino\]'"):
        encode(texts[:2], "int8")


def test_a_fork_after_use_works(texts):
    program = """
import multiprocessing, warnings
warnings.simplefilter("ignore")
from skminilm import MiniLMEncoder
def encode(texts):
    return MiniLMEncoder(backend="openvino", precision="fp32", cache=None).transform(texts)
if __name__ == "__main__":
    expected = encode(["one", "two"])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.map_async(encode, [["one", "two"]]).get(timeout=300)[0]
    assert abs(found - expected).max() < 2e-5
    print("same")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.stdout == "same\n", done.stderr


def test_another_checkpoint_is_another_graph(transformers_folder, tmp_path, texts):
    import shutil

    folder = shutil.copytree(transformers_folder, tmp_path / "model")
    first = encode(texts[:4], model=folder)
    edit_json(folder / "config.json", layer_norm_eps=1e-2)
    assert not np.array_equal(encode(texts[:4], model=folder), first)


@pytest.mark.slow
def test_nothing_is_reported_to_the_makers_of_the_library(tmp_path):
    """OpenVINO and NNCF write an identity into the home folder when they report."""
    program = """
import os
from skminilm import MiniLMEncoder
encoder = MiniLMEncoder(backend="openvino", precision="int8", calibration_texts=["a b", "c d"])
assert encoder.transform(["x"]).shape == (1, 384)
assert "NNCF_CI" not in os.environ and "CI" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    environment |= {"HOME": str(tmp_path), "SKMINILM_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=600)
    files = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*") if path.is_file()]
    # Older releases of NNCF import matplotlib, which lists its fonts.
    assert {parts[0] for parts in files if "matplotlib" not in parts} == {"cache"}


def test_the_process_may_have_another_default_dtype_or_device(texts, reset_torch_defaults):
    encoder = MiniLMEncoder(backend="openvino", precision="fp32", cache=None)
    expected = encoder.transform(texts[:8])
    for change in (
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_default_device("meta"),
    ):
        change()
        np.testing.assert_array_equal(encoder.transform(texts[:8]), expected)
        reset_torch_defaults()


def test_vectors_of_two_backends_are_kept_apart(transformers_folder, texts):
    for backend in ("torch", "openvino"):
        MiniLMEncoder(transformers_folder, precision="fp32", backend=backend).transform(texts[:2])
    assert len(memory_cache) == 4


def test_packages_that_do_not_fit_together_say_what_to_do(tmp_path, monkeypatch):
    from skminilm.engine._openvino_import import import_silently

    (tmp_path / "old_nncf.py").write_text("import types\ntypes.u2\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"old_nncf cannot be imported here .*u2.*: pip install -U"):
        import_silently("old_nncf")
