"""What is particular to GPUs, and all tests marked ``gpu`` on GPUs that the CPU simulates."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_question_answerer import ANSWERS, QUESTIONS

from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    release_models,
)
from skminilm.engine import varlen
from skminilm.engine.packed_model import PackedModel
from skminilm.finetuning.parameters import LossScale

TESTS = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is missing")
def test_what_is_for_a_gpu_passes_on_simulated_ones():
    if torch.version.cuda or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("torch is built for CUDA, or older than what the simulation was written for")
    command = [sys.executable, "-m", "pytest", "-p", "simulated_gpu", "-p", "no:cacheprovider", "-m", "gpu"]
    command += ["-n", "2", "--dist", "worksteal"]  # the simulation computes on one thread
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*command, "-q", str(TESTS)], env=environment, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 20


@pytest.mark.gpu
def test_a_gpu_keeps_to_itself():
    """Hold for simulated ones, or tests on them say nothing."""
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device.type == "cuda"
    assert (there + 1).device == there.device
    with pytest.raises(RuntimeError):
        here + there
    with pytest.raises(TypeError):
        there.numpy()
    before = torch.cuda.memory_allocated()
    large = torch.zeros(2**20, device="cuda")
    assert torch.cuda.memory_allocated() >= before + large.numel() * 4
    del large
    assert torch.cuda.memory_allocated() == before
    torch.cuda.set_sync_debug_mode("error")
    try:
        pinned = torch.ones(3, pin_memory=True).to("cuda", non_blocking=True)
        for waiting in (
            lambda: float(pinned[0]),
            lambda: pinned[pinned > 0],
            pinned.cpu,
            lambda: here.to("cuda"),
        ):
            with pytest.raises(RuntimeError):
                waiting()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_two_gpus_share_a_call(requests, monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    used = set()
    original = PackedModel.start

    def start(self, *args):
        used.add(self.device)
        return original(self, *args)

    monkeypatch.setattr(PackedModel, "start", start)
    expected = MiniLMEncoder(device="cuda", cache=None, batch_tokens=500).transform(requests.data[::5])
    assert used == {torch.device("cuda", 0)}
    found = MiniLMEncoder(device="auto", cache=None, batch_tokens=500).transform(requests.data[::5])
    assert used == {torch.device("cuda", 0), torch.device("cuda", 1)}
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.fixture
def older_gpu(monkeypatch):
    """A GPU without bfloat16, which FlashAttention does not know, such as a T4."""

    def no_kernel():
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    release_models()
    monkeypatch.setattr(varlen, "_torch_kernel", no_kernel)
    monkeypatch.setattr(varlen, "_works", {})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    yield
    release_models()


@pytest.mark.gpu
def test_an_older_gpu_trains_in_float16(split, older_gpu, monkeypatch):
    X, y, X_new, y_new = split
    scaled = []
    original = LossScale.update
    monkeypatch.setattr(
        LossScale, "update", lambda self, *args: scaled.append(self.enabled) or original(self, *args)
    )
    classifier = MiniLMClassifier(trainable=2, epochs=1, device="cuda", random_state=0).fit(X, y)
    assert set(scaled) == {True}
    assert classifier.score(X_new, y_new) > 0.5
    expected = classifier.predict_proba(X_new)
    classifier.set_params(device="cpu", precision="fp32")
    np.testing.assert_allclose(classifier.predict_proba(X_new), expected, atol=0.05)


@pytest.mark.gpu
def test_questions_are_answered():
    options = dict(trainable=4, epochs=12, batch_size=4, random_state=0)
    answerer = MiniLMQuestionAnswerer(device="cuda", precision="bf16", **options).fit(QUESTIONS, ANSWERS)
    assert answerer.exact_match(QUESTIONS, ANSWERS) >= 0.8
    expected = answerer.predict_proba(QUESTIONS)
    answerer.set_params(device="cpu", precision="fp32")
    np.testing.assert_allclose(answerer.predict_proba(QUESTIONS), expected, atol=0.1)


@pytest.mark.gpu
def test_pairs_several_labels_and_numbers(split):
    X, y, X_new = split[0][::2], split[1][::2], split[2][::8]
    options = dict(trainable=2, epochs=1, precision="fp32", random_state=0)
    several = np.stack([y == "delivery", y == "billing"], axis=1).astype(int)
    pairs, new_pairs = ([[text, text[::-1]] for text in some] for some in (X, X_new))
    for estimator, data, target, new in (
        (MiniLMClassifier(gradient_checkpointing=True, **options), pairs, y, new_pairs),
        (MiniLMClassifier(early_stopping=True, validation_fraction=0.25, **options), X, several, X_new),
        (MiniLMRegressor(**options), X, [len(text) for text in X], X_new),
    ):
        method = "predict" if isinstance(estimator, MiniLMRegressor) else "predict_proba"
        on_gpu = getattr(estimator.set_params(device="cuda").fit(data, target), method)(new)
        on_cpu = getattr(estimator.set_params(device="cpu").fit(data, target), method)(new)
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.01, atol=0.01)
