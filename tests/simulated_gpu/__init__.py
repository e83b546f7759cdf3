"""A pytest plugin: tests marked ``gpu`` run on two GPUs that the CPU simulates.

    PYTHONPATH=tests python -m pytest -p simulated_gpu -m gpu

A tensor says that it is on a GPU, and its numbers are the CPU's. What a GPU
refuses is refused: tensors of two devices in one operation, an array of a
tensor that is not on the CPU, and, where a test asks for that
(``torch.cuda.set_sync_debug_mode``), whatever makes the host wait. It says
nothing of a GPU's kernels: neither their results nor their time.

Needs g++, and torch from 2.13 on, built for the CPU. To be loaded before torch, which asks only once what there is.
"""

from .runtime import load_runtime

load_runtime()

import pytest  # noqa: E402

from .tensors import simulate_gpus  # noqa: E402


@pytest.fixture(autouse=True)
def simulated_gpus(request, monkeypatch):
    """Let a test that is marked ``gpu`` find two GPUs."""
    if request.node.get_closest_marker("gpu"):
        simulate_gpus(request, monkeypatch)
