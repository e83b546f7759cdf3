import errno
import importlib.util
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from conftest import write_same_xlmr
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import skminilm
from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
    _persistence,
    clear_cache,
)
from skminilm.checkpoints import load_checkpoint
from skminilm.checkpoints.digests import combine_digests
from skminilm.checkpoints.loading import _loaded
from skminilm.engine import release_models

SAVED = Path(__file__).parent / "data" / "saved"
OPTIONS = dict(epochs=1, random_state=0)


@pytest.fixture(scope="module")
def top(split):
    X, y, _, _ = split
    return MiniLMClassifier(trainable=1, **OPTIONS).fit(X, y)


def folder_size(path):
    return sum(file.stat().st_size for file in path.rglob("*"))


def run(code, *arguments):
    """Run code in a new process, in another folder."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PREDICT = """
import sys, json, numpy as np, skminilm
X, names = json.load(open(sys.argv[2])), sys.argv[3:]
for i, name in enumerate(names):
    loaded = getattr(skminilm, name).load(f"{sys.argv[1]}/{i}")
    np.save(f"{sys.argv[1]}/{i}.npy", loaded.transform(X) if hasattr(loaded, "transform") else loaded.predict(X))
"""


def test_saved_estimators_open_in_a_new_process(split, top, tmp_path):
    X, X_new = split[0], split[2][::4]
    (tmp_path / "texts.json").write_text(json.dumps(X_new))
    numbers = MiniLMRegressor(trainable="head", **OPTIONS).fit(X, np.arange(40) / 7)
    estimators = top, numbers, MiniLMEncoder(prompt="x: ", pooling="cls").fit(X), MiniLMEncoder()
    for i, estimator in enumerate(estimators):
        estimator.save(tmp_path / "deep" / str(i))
    names = [type(estimator).__name__ for estimator in estimators]
    run(PREDICT, tmp_path / "deep", tmp_path / "texts.json", *names)
    for i, estimator in enumerate(estimators):
        path = tmp_path / "deep" / str(i)
        found = np.load(path.with_suffix(".npy"))
        expected = estimator.transform(X_new) if hasattr(estimator, "transform") else estimator.predict(X_new)
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found, expected)
        assert not list(path.glob("*.pkl"))
        assert sorted(file.name for file in path.iterdir()) == ["arrays.safetensors", "estimator.json"]


def test_what_comes_back_is_what_was_saved(split, top, tmp_path):
    top.save(tmp_path / "saved")
    loaded = MiniLMClassifier.load(tmp_path / "saved")
    assert loaded.get_params() == top.get_params()
    assert vars(loaded).keys() == vars(top).keys()
    np.testing.assert_array_equal(loaded.predict_proba(split[2]), top.predict_proba(split[2]))
    assert loaded.classes_.dtype == top.classes_.dtype
    assert loaded.history_ == top.history_
    assert clone(loaded).get_params() == top.get_params()


@pytest.mark.parametrize(
    "parameters",
    [
        {"class_weight": {3: 2.0, 5: 1.0}},
        {"model": Path("bundled")},
        {"prompt": None},
        {"learning_rate": 1e-5},
    ],
    ids=str,
)
def test_parameters_of_any_kind(parameters, tmp_path):
    MiniLMClassifier(**parameters).save(tmp_path / "saved")
    for name, value in parameters.items():
        found = MiniLMClassifier.load(tmp_path / "saved").get_params()[name]
        assert found == value
        assert type(found) is type(value)


def test_a_parameter_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"random_state=RandomState.* cannot be saved"):
        MiniLMClassifier(random_state=np.random.RandomState(0)).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_sizes(split, tmp_path):
    X, y, _, _ = split
    pipeline = make_pipeline(MiniLMEncoder(), LogisticRegression()).fit(X, y)
    joblib.dump(pipeline, tmp_path / "pipeline.joblib")
    assert (tmp_path / "pipeline.joblib").stat().st_size < 100_000
    limits = {"head": 100_000, 1: 7_200_000, 2: 14_300_000, "encoder": 86_000_000}
    if importlib.util.find_spec("peft"):
        limits["lora"] = 3_000_000
    for trainable, limit in limits.items():
        classifier = MiniLMClassifier(trainable=trainable, **OPTIONS).fit(X[::2], y[::2])
        joblib.dump(classifier, tmp_path / "classifier.joblib")
        assert (tmp_path / "classifier.joblib").stat().st_size < limit
        classifier.save(tmp_path / str(trainable))
        assert folder_size(tmp_path / str(trainable)) < limit


@pytest.mark.parametrize("trainable", ["encoder", 1, "all"], ids=str)
def test_half_the_size_with_the_same_predictions(split, trainable, tmp_path):
    X, y, X_new = split[0][::2], split[1][::2], split[2][::4]
    classifier = MiniLMClassifier(trainable=trainable, save_weights="fp16", **OPTIONS).fit(X, y)
    before = classifier.predict_proba(X_new)
    classifier.save(tmp_path / "saved")
    joblib.dump(classifier, tmp_path / "classifier.joblib")
    release_models()
    limit = 45_000_000 if trainable == "all" else 43_000_000
    assert folder_size(tmp_path / "saved") <= limit
    assert (tmp_path / "classifier.joblib").stat().st_size <= limit
    for loaded in (MiniLMClassifier.load(tmp_path / "saved"), joblib.load(tmp_path / "classifier.joblib")):
        np.testing.assert_array_equal(loaded.predict_proba(X_new), before)
    exact = MiniLMClassifier(trainable=trainable, **OPTIONS).fit(X, y)
    np.testing.assert_allclose(before, exact.predict_proba(X_new), atol=0.02)
    assert classifier.set_params(warm_start=True).fit(X, y).n_iter_ == 2


FULL = """
import sys, json, joblib, numpy as np
import skminilm.checkpoints.bundled as bundled
def missing(): raise OSError("not installed here")
bundled.find_bundled_file = missing
import skminilm
X = json.load(open(sys.argv[2]))
for name, model in (("a", skminilm.MiniLMClassifier.load(sys.argv[1])), ("b", joblib.load(sys.argv[1] + ".joblib"))):
    np.save(sys.argv[3] + name, model.predict_proba(X))
"""


@pytest.mark.parametrize("trainable", ["head", 1], ids=str)
def test_a_full_one_opens_where_the_checkpoint_is_missing(split, trainable, tmp_path):
    X, y, X_new = split[0], split[1], split[2][::4]
    classifier = MiniLMClassifier(trainable=trainable, save_weights="full", **OPTIONS).fit(X, y)
    classifier.save(tmp_path / "saved")
    joblib.dump(classifier, tmp_path / "saved.joblib")
    (tmp_path / "texts.json").write_text(json.dumps(X_new))
    run(FULL, tmp_path / "saved", tmp_path / "texts.json", tmp_path / "out")
    expected = classifier.predict_proba(X_new)
    for name in "ab":
        np.testing.assert_allclose(np.load(tmp_path / f"out{name}.npy"), expected, atol=1e-5)


def test_full_needs_a_bert_shaped_checkpoint(split, distilbert_folder):
    X, y, _, _ = split
    classifier = MiniLMClassifier(distilbert_folder, trainable="head", max_length=64, save_weights="full")
    with pytest.raises(ValueError, match="save_weights='full' needs a BERT-shaped checkpoint"):
        classifier.fit(X, y)


def test_full_with_another_vocabulary(split, transformers_folder, tmp_path):
    X, y, X_new, _ = split
    copy = tmp_path / "model"
    shutil.copytree(transformers_folder, copy)
    classifier = MiniLMClassifier(copy, trainable=1, max_length=64, save_weights="full", **OPTIONS).fit(X, y)
    expected = classifier.predict_proba(X_new)
    classifier.save(tmp_path / "saved")
    shutil.rmtree(copy)
    release_models()
    np.testing.assert_array_equal(MiniLMClassifier.load(tmp_path / "saved").predict_proba(X_new), expected)


@pytest.mark.parametrize("trainable", ["head", 1], ids=str)
def test_a_full_one_goes_on_where_the_checkpoint_is_missing(
    split, transformers_folder, make_sentence_transformers_folder, trainable, tmp_path
):
    X, y, X_new, _ = split
    copy = tmp_path / "model"
    shutil.copytree(transformers_folder, copy)
    options = dict(trainable=trainable, max_length=64, save_weights="full", warm_start=True, **OPTIONS)
    classifier = MiniLMClassifier(copy, **options).fit(X, y)
    expected = clone(classifier).fit(X, y).fit(X, y).predict_proba(X_new)
    classifier.save(tmp_path / "saved")
    shutil.rmtree(copy)
    release_models()
    loaded = MiniLMClassifier.load(tmp_path / "saved").fit(X, y)
    assert loaded.n_iter_ == 2
    np.testing.assert_array_equal(loaded.predict_proba(X_new), expected)
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(MiniLMClassifier.load(tmp_path / "again").predict_proba(X_new), expected)
    with pytest.raises(ValueError, match="had another model or revision, pooling, prompt or max_length"):
        loaded.set_params(model=make_sentence_transformers_folder(), max_length=24).fit(X, y)
    with pytest.raises(OSError, match=r"The folder .* does not exist"):
        clone(loaded).set_params(model=copy).fit(X, y)


def test_a_full_one_notices_another_revision(
    make_sentence_transformers_folder, tmp_path, monkeypatch, unreachable_hub
):
    X, y = ["good", "bad", "fine", "awful"], ["+", "-", "+", "-"]
    folder, snapshots = (
        make_sentence_transformers_folder(),
        tmp_path / "models--somebody--model" / "snapshots",
    )
    for revision in "abc":
        shutil.copytree(folder, snapshots / (40 * revision))
    changed = snapshots / ("b" * 40) / "model.safetensors"
    weights = {name: -array for name, array in load_file(changed).items()}
    save_file(weights, changed, {"format": "pt"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load_checkpoint(snapshots / ("c" * 40))  # it keeps the name it was first opened by
    options = dict(trainable="head", max_length=24, save_weights="full", warm_start=True, **OPTIONS)
    classifier = MiniLMClassifier("somebody/model", revision="a" * 40, **options).fit(X, y)
    classifier.save(tmp_path / "saved")
    classifier = MiniLMClassifier.load(tmp_path / "saved").set_params(revision="b" * 40)
    with pytest.raises(ValueError, match="had another model or revision, pooling, prompt or max_length"):
        classifier.fit(X, y)
    assert classifier.n_iter_ == 1
    assert classifier.set_params(revision="c" * 40).fit(X, y).n_iter_ == 2  # the same weights
    shutil.rmtree(snapshots)
    _loaded.clear()
    assert classifier.fit(X, y).n_iter_ == 3
    with pytest.raises(OSError, match=r"revision a+\) is not in the local cache"):
        classifier.set_params(revision="a" * 40).fit(X, y)
    del classifier.checkpoint_["revision"]  # as it was kept before: nothing says that it is another one
    assert classifier.fit(X, y).n_iter_ == 4


@pytest.mark.parametrize("file", ["estimator.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "change", "remove"])
def test_a_changed_or_truncated_file_is_refused(top, tmp_path, file, damage):
    top.save(tmp_path / "saved")
    path = tmp_path / "saved" / file
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        position = content.index(b'"encoder"') if b'"encoder"' in content else len(content) - 9
        content[position + 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"was changed or cut off|holds no saved estimator"
    ):
        MiniLMClassifier.load(tmp_path / "saved")


def test_newer_versions_and_other_classes_are_refused(top, tmp_path, monkeypatch):
    top.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="holds a MiniLMClassifier, expected MiniLMRegressor"):
        MiniLMRegressor.load(tmp_path / "saved")
    monkeypatch.setattr(_persistence, "FORMAT_VERSION", 99)
    top.save(tmp_path / "newer")
    pickled = pickle.dumps(top)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"saved in format 99 .*upgrade skminilm"):
        MiniLMClassifier.load(tmp_path / "newer")
    with pytest.raises(ValueError, match=r"pickled in format 99; .*upgrade skminilm"):
        pickle.loads(pickled)
    with pytest.raises(
        FileNotFoundError, match=r"holds no saved estimator.*MiniLMClassifier\.from_transformers"
    ):
        MiniLMClassifier.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Give a folder that MiniLMEncoder\.save wrote\.$"):
        MiniLMEncoder.load(tmp_path)


def test_parameters_of_a_later_release_are_refused(tmp_path):
    class Later(MiniLMEncoder):
        def __init__(self, *, later=1):
            super().__init__()
            self.later = later

    Later.__name__ = "MiniLMEncoder"
    Later().save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"MiniLMEncoder with later, which this version .*upgrade skminilm"):
        MiniLMEncoder.load(tmp_path / "saved")


@pytest.mark.parametrize("name", ["clear_cache", "LogisticRegression", "__version__"])
def test_a_file_cannot_make_what_is_no_estimator_of_this_package(tmp_path, name):
    MiniLMZeroShotClassifier(labels=["a", "b"], nli=MiniLMClassifier()).save(tmp_path)
    path = tmp_path / "estimator.json"
    content = json.loads(path.read_text())
    del content["digest"]
    content["parameters"]["nli"]["estimator"]["class"] = name
    path.write_text(json.dumps({**content, "digest": combine_digests(content)}))
    with pytest.raises(ValueError, match=f"holds a {name}, which is no estimator of skminilm"):
        MiniLMZeroShotClassifier.load(tmp_path)


def rewrite(folder, change, change_arrays=lambda arrays: None):
    """Change a saved estimator as somebody would who knows the format."""
    content, arrays = (
        json.loads((folder / "estimator.json").read_text()),
        load_file(folder / "arrays.safetensors"),
    )
    del content["digest"]
    change_arrays(arrays)
    save_file(arrays, folder / "arrays.safetensors")
    content["arrays_sha256"] = _persistence.file_sha256(folder / "arrays.safetensors")
    change(content)
    (folder / "estimator.json").write_text(json.dumps({**content, "digest": combine_digests(content)}))


def key_of(content, *path):
    for name in path:
        content = content[name] if name in content else dict(content["items"])[name]
    return content["array"]


def test_a_changed_checkpoint_takes_no_others_place(transformers_folder, split, tmp_path):
    X, y, X_new, _ = split
    expected = MiniLMEncoder(transformers_folder, cache=None).transform(X_new)
    classifier = MiniLMClassifier(transformers_folder, trainable="head", save_weights="full", max_length=64)
    classifier.fit(X, y).save(tmp_path)
    content = json.loads((tmp_path / "estimator.json").read_text())
    table = key_of(content["fitted"], "checkpoint_", "weights", "embeddings.word_embeddings.weight")

    def double(arrays):
        arrays[table] = arrays[table] * 2

    rewrite(tmp_path, lambda content: None, double)
    release_models()
    clear_cache()
    loaded = MiniLMClassifier.load(tmp_path)
    assert np.abs(loaded.encode(X_new) - classifier.encode(X_new)).max() > 1e-3
    np.testing.assert_array_equal(MiniLMEncoder(transformers_folder).transform(X_new), expected)


def test_changed_weights_take_no_others_place(top, split, tmp_path):
    _, _, X_new, _ = split
    expected = top.predict_proba(X_new)
    top.save(tmp_path)
    content = json.loads((tmp_path / "estimator.json").read_text())
    bias = key_of(content["fitted"], "weights_", "layers.11.output.bias")

    def shift(arrays):
        arrays[bias] = arrays[bias] + np.arange(384, dtype=np.float32)

    rewrite(tmp_path, lambda content: None, shift)
    assert np.abs(MiniLMClassifier.load(tmp_path).predict_proba(X_new) - expected).max() > 1e-3
    np.testing.assert_array_equal(top.predict_proba(X_new), expected)


def test_weights_of_another_shape_are_an_error(top, split, tmp_path):
    top.save(tmp_path)
    content = json.loads((tmp_path / "estimator.json").read_text())
    qkv = key_of(content["fitted"], "weights_", "layers.11.qkv.weight")

    def cut(arrays):
        arrays[qkv] = arrays[qkv][:704].copy()

    rewrite(tmp_path, lambda content: None, cut)
    with pytest.raises((OSError, ValueError), match=r"layers\.11\.qkv\.weight has the shape"):
        MiniLMClassifier.load(tmp_path).predict(split[2])


@pytest.mark.parametrize("name", ["transform", "__class__", "_encode"])
def test_a_file_replaces_no_method(tmp_path, name):
    MiniLMEncoder().save(tmp_path)
    rewrite(tmp_path, lambda content: content["fitted"].update({name: "x"}))
    with pytest.raises(ValueError, match=f"holds the attribute {name}"):
        MiniLMEncoder.load(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_in_the_folder_leads_nowhere(tmp_path):
    (tmp_path / "victim").write_text("precious")
    folder = tmp_path / "shared"
    MiniLMEncoder().save(folder)
    for name in (".estimator.json", ".arrays.safetensors"):
        (folder / name).symlink_to(tmp_path / "victim")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(
            _persistence, "replace_folder", lambda *_: (_ for _ in ()).throw(OSError(errno.EBUSY, "busy"))
        )
        MiniLMEncoder(prompt="b").save(folder)  # in place
    assert (tmp_path / "victim").read_text() == "precious"
    assert MiniLMEncoder.load(folder).prompt == "b"


def test_files_are_flushed_by_handles_that_may_write(top, tmp_path, monkeypatch):
    """Windows refuses to flush others."""
    fcntl = pytest.importorskip("fcntl")
    flush, flushed = os.fsync, []

    def checked(handle):
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            flushed.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        flush(handle)

    monkeypatch.setattr(os, "fsync", checked)
    top.save(tmp_path / "saved")
    assert len(flushed) == 2
    assert os.O_RDONLY not in flushed


def test_an_interrupted_save_leaves_the_old_one(split, top, tmp_path, monkeypatch):
    path = tmp_path / "saved"
    top.save(path)
    other = MiniLMClassifier(trainable="head", **OPTIONS).fit(split[0], split[1])

    def interrupted(*_):
        raise KeyboardInterrupt

    for step in ("_write_arrays", "_write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(_persistence, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                other.save(path)
        assert MiniLMClassifier.load(path).trainable == 1
    other.save(path)
    assert MiniLMClassifier.load(path).trainable == "head"
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_nothing_else_is_overwritten(top, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "estimator.json").write_text("{}")
    top.save(tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("precious")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "project", tmp_path / "saved"):
        with pytest.raises(FileExistsError, match="holds something else"):
            top.save(path)
    assert (
        (tmp_path / "notes.txt").read_text() == (tmp_path / "saved" / "README.md").read_text() == "precious"
    )


def test_a_link_stays_a_link(top, tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    top.save(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert MiniLMClassifier.load(tmp_path / "v1").trainable == 1


def test_a_callback_can_save(split, tmp_path):
    pytest.importorskip("sklearn.callback")

    class Save:
        def setup(self, estimator, context): ...

        def teardown(self, estimator, context): ...

        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            if context.task_name == "epoch":
                fitted_estimator.save(tmp_path / f"epoch{context.task_id}")

    X, y, X_new, _ = split
    MiniLMClassifier(trainable=1, epochs=2, random_state=0).set_callbacks(Save()).fit(X, y)
    assert MiniLMClassifier.load(tmp_path / "epoch0").n_iter_ == 1
    assert MiniLMClassifier.load(tmp_path / "epoch1").predict(X_new).shape == (len(X_new),)


@pytest.fixture(scope="module")
def folder_of_xlmr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    write_same_xlmr(folder / "xlmr")
    return folder


@pytest.fixture
def xlmr_here(folder_of_xlmr, monkeypatch):
    monkeypatch.chdir(folder_of_xlmr)


def predictions(estimator, expected):
    """What is compared of an estimator in tests/data/saved, for the texts in the file of expected predictions."""
    if isinstance(estimator, MiniLMEncoder):
        return estimator.transform(expected["texts"])[:, :8]
    if isinstance(estimator, MiniLMRegressor):
        return estimator.predict(expected["texts"])
    if isinstance(estimator, MiniLMQuestionAnswerer):
        best = [spans[0] for spans in estimator.predict_spans(expected["questions"])]
        return np.array([[span.start, span.end, span.score] for span in best], float)
    return estimator.predict_proba(expected["texts"])


@pytest.mark.parametrize(
    "folder",
    sorted(folder for folder in SAVED.glob("*/*") if folder.is_dir()),
    ids=lambda folder: f"{folder.parent.name}-{folder.name}",
)
def test_saved_files_of_each_format_version_open(folder, xlmr_here):
    """Written by tests/data/write_saved.py of that version."""
    expected = json.loads((folder.parent / "expected.json").read_text(encoding="utf-8"))
    kind = json.loads((folder / "estimator.json").read_text())["class"]
    estimator = getattr(skminilm, kind).load(folder)
    np.testing.assert_allclose(predictions(estimator, expected), expected[folder.name], atol=2e-3)


def test_all_that_was_saved_is_still_there():
    """A folder that is missing makes no test of it."""
    for version in range(1, _persistence.FORMAT_VERSION + 1):
        saved = SAVED / f"v{version}"
        folders = {folder.name for folder in saved.iterdir() if folder.is_dir()}
        expected = json.loads((saved / "expected.json").read_text(encoding="utf-8"))
        assert folders == expected.keys() - {"texts", "questions"}


def test_skops(split, top):
    skops = pytest.importorskip("skops.io")
    X, y, X_new, _ = split
    pipeline = make_pipeline(MiniLMEncoder(), LogisticRegression()).fit(X, y)
    for model, trusted in (
        (top, ["skminilm._classifier.MiniLMClassifier"]),
        (pipeline, ["skminilm._encoder.MiniLMEncoder"]),
    ):
        dumped = skops.dumps(model)
        assert skops.get_untrusted_types(data=dumped) == trusted
        loaded = skops.loads(dumped, trusted=trusted)
        np.testing.assert_array_equal(loaded.predict(X_new), model.predict(X_new))


def test_processes_share_the_pages_of_a_memory_map(top, split, tmp_path):
    joblib.dump(top, tmp_path / "classifier.joblib")
    loaded = joblib.load(tmp_path / "classifier.joblib", mmap_mode="r")
    assert all(isinstance(array, np.memmap) for array in loaded.weights_.values())
    np.testing.assert_array_equal(loaded.predict_proba(split[2]), top.predict_proba(split[2]))
    loaded.save(tmp_path / "saved")


def test_a_save_that_fails_at_its_last_step_brings_the_old_one_back(tmp_path, monkeypatch):
    MiniLMEncoder(prompt="x: ").save(tmp_path / "saved")
    original = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError("no space left")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr("skminilm._folders._swap", lambda *_: False)  # as on other systems than Linux
    with pytest.raises(OSError, match="no space left"):
        MiniLMEncoder().save(tmp_path / "saved")
    assert MiniLMEncoder.load(tmp_path / "saved").prompt == "x: "


def test_home_is_found_in_saving_and_loading(tmp_path, monkeypatch, transformers_folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    MiniLMEncoder(max_length=17).save("~/saved")
    assert MiniLMEncoder.load("~/saved").max_length == 17
    (tmp_path / "checkpoint").symlink_to(transformers_folder)
    found = MiniLMEncoder("~/checkpoint").transform(["one"])
    np.testing.assert_array_equal(found, MiniLMEncoder(str(transformers_folder)).transform(["one"]))


_SAVE_AND_LOAD = """
import sys
from skminilm import MiniLMEncoder
path, number = sys.argv[1], int(sys.argv[2])
for turn in range(40):
    MiniLMEncoder(max_length=10 + number).save(path)
    assert MiniLMEncoder.load(path).max_length in (10, 11, 12)
"""


@pytest.mark.parametrize("is_there", [False, True])
def test_several_processes_save_and_load_one_folder(tmp_path, is_there):
    if is_there:
        MiniLMEncoder(max_length=10).save(tmp_path / "saved")
    command = [sys.executable, "-c", _SAVE_AND_LOAD, str(tmp_path / "saved")]
    running = [
        subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(3)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_folder_that_another_process_replaces_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    saved, other = tmp_path / "saved", tmp_path / "other"
    MiniLMEncoder(max_length=10).save(saved)
    MiniLMEncoder(max_length=11).save(other)
    of_other, iterdir = other.stat().st_ino, Path.iterdir

    def replacing(self):
        if self == saved and other.exists():
            saved.rename(tmp_path / "earlier")
            other.rename(saved)
            return iter(())  # the earlier folder, whose files are deleted meanwhile
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", replacing)
    MiniLMEncoder(max_length=12).save(saved)
    assert saved.stat().st_ino != of_other  # written beside it, not into it
    assert MiniLMEncoder.load(saved).max_length == 12


def test_a_folder_is_replaced_where_names_cannot_be_swapped(tmp_path, monkeypatch):
    monkeypatch.setattr("skminilm._folders._swap", lambda *_: False)
    for length in (10, 11):
        MiniLMEncoder(max_length=length).save(tmp_path / "saved")
        assert MiniLMEncoder.load(tmp_path / "saved").max_length == length
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_folder_that_is_there_stays_the_same_folder(tmp_path, monkeypatch):
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    before = folder.stat()
    monkeypatch.chdir(folder)
    MiniLMEncoder(prompt="a").save(".")
    assert MiniLMEncoder.load(".").prompt == "a"
    assert (folder.stat().st_ino, folder.stat().st_mode) == (before.st_ino, before.st_mode)
    MiniLMEncoder(prompt="c").save(".")
    assert folder.stat().st_ino == before.st_ino
    assert MiniLMEncoder.load(".").prompt == "c"
    monkeypatch.chdir(tmp_path)
    MiniLMEncoder(prompt="b").save(folder)
    assert folder.stat().st_mode == before.st_mode
    assert MiniLMEncoder.load(folder).prompt == "b"
    assert sorted(file.name for file in folder.iterdir()) == ["arrays.safetensors", "estimator.json"]


@pytest.mark.parametrize("reason", [errno.EBUSY, errno.EROFS])
def test_a_folder_that_cannot_be_exchanged_is_written_in_place(tmp_path, monkeypatch, reason):
    """A mount point, say, in a container whose root is read-only."""

    def busy(path, new):
        raise OSError(reason, "busy")

    MiniLMEncoder(prompt="a").save(tmp_path / "mounted")
    monkeypatch.setattr(_persistence, "replace_folder", busy)
    MiniLMEncoder(prompt="b").save(tmp_path / "mounted")
    assert MiniLMEncoder.load(tmp_path / "mounted").prompt == "b"
    with pytest.raises(OSError, match="busy"):
        MiniLMEncoder(prompt="b").save(tmp_path / "new")


def test_what_else_is_in_a_folder_is_named(tmp_path):
    MiniLMEncoder().save(tmp_path)
    (tmp_path / "README.md").touch()
    with pytest.raises(FileExistsError, match=r"holds something else \('README.md'\)"):
        MiniLMEncoder().save(tmp_path)


@pytest.mark.parametrize("content", ['["format_version"]', '"format_version"', '{"format_version": 1}', "7"])
def test_no_file_of_somebody_else_is_replaced(tmp_path, content):
    (tmp_path / "estimator.json").write_text(content)
    with pytest.raises(FileExistsError, match="holds something else"):
        MiniLMEncoder().save(tmp_path)
    assert (tmp_path / "estimator.json").read_text() == content


@pytest.mark.parametrize("name", ["notes.txt", "estimator.json"])
@pytest.mark.parametrize("place", ["none", "an empty folder", "a model", "a model that is worked in"])
def test_what_comes_there_during_a_save_is_not_replaced(tmp_path, monkeypatch, place, name):
    path, write_text = tmp_path / "model", _persistence._write_text
    if place == "an empty folder":
        path.mkdir()
    elif place != "none":
        MiniLMEncoder(prompt="a").save(path)
    if place == "a model that is worked in":
        monkeypatch.chdir(path)

    def writing(*args):
        path.mkdir(exist_ok=True)
        (path / name).write_text("precious")
        write_text(*args)

    monkeypatch.setattr(_persistence, "_write_text", writing)
    with pytest.raises(FileExistsError, match="holds something else"):
        MiniLMEncoder(prompt="b").save(path)
    assert (path / name).read_text() == "precious"
    if "model" in place and name == "notes.txt":
        (path / name).unlink()
        assert MiniLMEncoder.load(path).prompt == "a"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_names_that_are_no_unicode_are_kept(tmp_path):
    MiniLMEncoder(cache="a/\udcff", prompt="\ud800").save(tmp_path / ("n" * 250))
    loaded = MiniLMEncoder.load(tmp_path / ("n" * 250))
    assert (loaded.cache, loaded.prompt) == ("a/\udcff", "\ud800")


@pytest.mark.parametrize("changes", [{"format_version": "1"}, {"format_version": None}, {"versions": None}])
def test_a_file_without_a_version_is_damaged(tmp_path, changes):
    MiniLMEncoder().save(tmp_path)
    content = json.loads((tmp_path / "estimator.json").read_text())
    (tmp_path / "estimator.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(ValueError, match=r"estimator\.json cannot be read"):
        MiniLMEncoder.load(tmp_path)


def test_a_file_that_no_save_writes_is_damaged(tmp_path):
    MiniLMEncoder().save(tmp_path)
    rewrite(tmp_path, lambda content: content["fitted"].update({"x_": {"array": "nowhere"}}))
    with pytest.raises(ValueError, match="it holds what no save writes"):
        MiniLMEncoder.load(tmp_path)
    (tmp_path / "estimator.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"estimator\.json cannot be read"):
        MiniLMEncoder.load(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="it has other rights")
def test_both_files_may_be_read_by_the_same(tmp_path):
    MiniLMEncoder().save(tmp_path / "saved")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1
