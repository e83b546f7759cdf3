import json
import os
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch

from skminilm import MiniLMClassifier
from skminilm.finetuning.workers import find_workers

CPU = torch.device("cpu")


TOGETHER = """
import json, os, sys
import numpy as np
from skminilm import MiniLMClassifier
from skminilm._targets import ClassTargets
from skminilm.finetuning import SoftmaxObjective
X, y = json.load(open(sys.argv[1]))
if os.environ.get("RANK") == "1":  # another kind of GPU would give other vectors and scores
    start = ClassTargets.fit_head
    ClassTargets.fit_head = lambda *a: tuple(part + np.float32(0.1) for part in start(*a))
    SoftmaxObjective.score = lambda *_: 0.0
classifier = MiniLMClassifier(trainable=2, epochs=2, early_stopping=True, validation_fraction=0.25, n_iter_no_change=1,
                              precision="fp32", device="cpu", random_state=0).fit(X, y)
weights = {**classifier.weights_, "coef": classifier.coef_}
np.savez(sys.argv[2] + os.environ.get("RANK", ""), **weights)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(split, tmp_path):
    pytest.importorskip("accelerate")
    X, y, _, _ = split
    script, data = tmp_path / "script.py", tmp_path / "data.json"
    script.write_text(TOGETHER)
    data.write_text(json.dumps([X, y.tolist()]))
    # What `accelerate launch` runs on several GPUs; on CPUs it starts one process only.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, out in (([sys.executable], "one"), (launch, "two")):
        subprocess.run([*command, script, data, tmp_path / out], check=True, timeout=600, capture_output=True)
    alone = np.load(tmp_path / "one.npz")
    first, second = (np.load(tmp_path / f"two{rank}.npz") for rank in (0, 1))
    for name in alone.files:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], atol=1e-5)


def test_processes_that_train_together_need_an_int(split, monkeypatch):
    X, y, _, _ = split
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"random_state=None: several processes .* Give an int"):
        MiniLMClassifier().fit(X, y)


class _State:
    """What accelerate tells of a launched process."""

    num_processes, process_index = 2, 0

    def __init__(self, device):
        self.device = torch.device(device)


@pytest.fixture
def launched(monkeypatch):
    """Return a function that sets the device on which the processes were started."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return lambda device: monkeypatch.setattr(accelerate, "PartialState", lambda cpu: _State(device))


@pytest.mark.parametrize(("started", "asked"), [("cuda:1", "cpu"), ("cpu", "cuda:0")])
def test_processes_compute_where_they_were_started(launched, started, asked):
    launched(started)
    with pytest.raises(ValueError, match=f"were started on {started}, .* device='{started.split(':')[0]}'"):
        find_workers(torch.device(asked), "fp32", 0)


@pytest.mark.parametrize(
    ("mine", "other", "fits"), [("fp16", "bf16", False), ("bf16", "fp16", False), ("fp16", "fp16", True)]
)
def test_gpus_that_differ_agree_on_whether_the_loss_is_scaled(launched, monkeypatch, mine, other, fits):
    launched(CPU)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(float(other == "fp16")))
    if fits:
        assert find_workers(CPU, mine, 0)[0].world_size == 2
        return
    with pytest.raises(ValueError, match=r"is precision='fp16' in some .* Give precision='fp16' or 'fp32'"):
        find_workers(CPU, mine, 0)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_of_joblib_do_not_train_together_with_other_processes(split, backend, monkeypatch):
    X, y, _, _ = split
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="n_jobs=1"):
        joblib.Parallel(2, backend=backend)(joblib.delayed(_fit_launched)(X[:8], y[:8]) for _ in range(2))


def _fit_launched(X, y):
    with pytest.MonkeyPatch.context() as patch:
        if "WORLD_SIZE" not in os.environ:  # a process of loky that was there before
            patch.setenv("WORLD_SIZE", "2")
        MiniLMClassifier(device="cpu", random_state=0).fit(X, y)
