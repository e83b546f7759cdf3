import gc
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import largest_change, resident_mib

from skminilm import MiniLMClassifier, MiniLMQuestionAnswerer, MiniLMRegressor
from skminilm._targets import ClassTargets
from skminilm.finetuning import (
    SoftmaxObjective,
    TrainableEncoder,
    loop,
)


def after_steps(monkeypatch, n_steps, action):
    """Let `action` happen when some steps are done."""
    original, done = loop._Training._run_step, []

    def run_step(self, batch):
        if len(done) == n_steps:
            action()
        done.append(1)
        return original(self, batch)

    monkeypatch.setattr(loop._Training, "_run_step", run_step)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupted_fit_is_usable(split, monkeypatch, early_stopping):
    X, y, X_new, y_new = split
    after_steps(monkeypatch, 5, interrupt)
    classifier = MiniLMClassifier(trainable=1, epochs=5, early_stopping=early_stopping, random_state=0)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert classifier.n_iter_ == 2
    assert classifier.score(X, y) > 0.8


@pytest.mark.parametrize("refit_head", [False, True])
def test_an_interrupt_at_the_very_end_loses_nothing(split, monkeypatch, refit_head):
    X, y, _, _ = split
    options = dict(trainable=1, epochs=1, random_state=0, refit_head=refit_head)
    expected = MiniLMClassifier(**options).fit(X, y)
    original, calls = TrainableEncoder.arrays, []

    def arrays(self):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(TrainableEncoder, "arrays", arrays)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        found = MiniLMClassifier(**options).fit(X, y)
    assert found.weights_digest_ == expected.weights_digest_
    np.testing.assert_array_equal(found.coef_, expected.coef_)


INTERRUPTED = """
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from skminilm.engine.interrupts import deferred_interrupts

done = []

def work():
    with deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append(1)

def raises(function):
    try:
        function()
    except KeyboardInterrupt:
        return True

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
assert raises(work) and done == [1]
assert raises(lambda: signal.raise_signal(signal.SIGINT))
with ThreadPoolExecutor(1) as threads:  # which Ctrl-C does not reach
    assert threads.submit(lambda: deferred_interrupts().__enter__()).result() is None
"""


def test_an_interrupt_waits_for_the_end_of_what_it_would_spoil():
    """In a process of its own, for it may end one."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_fit_that_diverges_later_leaves_the_last_good_weights(split, monkeypatch):

    X, y, X_new, _ = split
    two_epochs = MiniLMClassifier(trainable=1, epochs=4, random_state=0)
    original, calls = SoftmaxObjective.losses, []

    def failing(self, outputs, targets):
        calls.append(1)
        losses = original(self, outputs, targets)
        return losses * torch.nan if len(calls) == 6 else losses

    monkeypatch.setattr(SoftmaxObjective, "losses", failing)
    with pytest.raises(FloatingPointError, match="The loss became nan in step 6 of 8"):
        two_epochs.fit(X, y)
    assert two_epochs.n_iter_ == two_epochs.best_epoch_ == 2
    assert np.isfinite(two_epochs.predict_proba(X_new)).all()
    assert two_epochs.score(X, y) > 0.8


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_many_fits_leave_memory_flat(split, monkeypatch):
    X, y = split[0][::2], split[1][::2]
    options = dict(trainable=6, epochs=1, batch_size=10, random_state=0)
    sizes = []
    for turn in range(9):
        with monkeypatch.context() as patch:
            classifier = MiniLMClassifier(**options)
            if turn % 3 == 1:
                after_steps(patch, 1, interrupt)
                with pytest.warns(UserWarning, match="interrupted"):
                    classifier.fit(X, y)
            elif turn % 3 == 2:
                with pytest.raises(FloatingPointError):
                    classifier.set_params(learning_rate=1e38, warmup_ratio=0).fit(X, y)
            else:
                classifier.fit(X, y)
        del classifier
        sizes.append(resident_mib())
    # One copy of what is trained is 42 MB, and AdamW has two more.
    assert max(sizes[6:]) - max(sizes[3:6]) < 10


@pytest.mark.parametrize("ending", ["plain", "interrupted", "diverged"])
@pytest.mark.parametrize("trainable", [2, "all", "lora"])
def test_a_trained_network_is_gone_when_fit_ends(split, xlmr_folder, monkeypatch, trainable, ending):
    """Without the garbage collector, which takes longer than a small fit."""
    if trainable == "lora":
        pytest.importorskip("peft")
    networks, original = [], TrainableEncoder.__init__

    def remembered(self, *args):
        networks.append(weakref.ref(self))
        original(self, *args)

    monkeypatch.setattr(TrainableEncoder, "__init__", remembered)
    X, y = [["Who?", "It is Ada."], ["Where?", "It is here."]], ["Ada", "here"]
    options = dict(trainable=trainable, max_length=32, epochs=2, gradient_checkpointing=True, random_state=0)
    models = [
        MiniLMClassifier(xlmr_folder, **options),
        MiniLMRegressor(xlmr_folder, early_stopping=True, validation_fraction=0.5, **options),
        MiniLMQuestionAnswerer(xlmr_folder, stride=4, max_answer_length=4, **options),
    ]
    gc.collect()
    gc.disable()
    try:
        for model, targets in zip(models, [["a", "b"], [1.0, 2.0], y], strict=True):
            with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
                if ending == "diverged":
                    model.set_params(learning_rate=1e38, head_learning_rate=1e38, warmup_ratio=0)
                    with pytest.raises(FloatingPointError):
                        model.fit(X, targets)
                else:
                    if ending == "interrupted":
                        after_steps(patch, 1, interrupt)
                    model.fit(X, targets)
            assert any("interrupted" in str(w.message) for w in caught) is (ending == "interrupted")
        assert [network() for network in networks] == [None] * 3
    finally:
        gc.enable()


def test_an_interruption_while_the_head_is_fitted_anew_keeps_what_was_trained(split, monkeypatch):
    X, y, _, _ = split
    original, calls = ClassTargets.fit_head, []

    def second_is_interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    options = dict(trainable=1, epochs=2, random_state=0)
    expected = MiniLMClassifier(refit_head=False, **options).fit(X, y)
    monkeypatch.setattr(ClassTargets, "fit_head", second_is_interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        classifier = MiniLMClassifier(**options).fit(X, y)
    np.testing.assert_array_equal(classifier.coef_, expected.coef_)
    assert largest_change(classifier, expected) == 0


@pytest.mark.gpu
def test_fits_leave_the_memory_of_a_gpu_flat(split, monkeypatch):

    X, y, _, _ = split
    sizes = []
    for turn in range(6):
        with monkeypatch.context() as patch:
            if turn % 3 == 1:
                after_steps(patch, 1, interrupt)
            classifier = MiniLMClassifier(trainable=2, epochs=1, device="cuda", random_state=0)
            if turn % 3 == 2:
                with pytest.raises(FloatingPointError):
                    classifier.set_params(learning_rate=1e38, warmup_ratio=0).fit(X, y)
            elif turn % 3 == 1:
                with pytest.warns(UserWarning, match="interrupted"):
                    classifier.fit(X, y)
            else:
                classifier.fit(X, y)
        del classifier
        sizes.append(torch.cuda.memory_allocated())
    assert max(sizes[3:]) <= max(sizes[:3]) + 2**20
