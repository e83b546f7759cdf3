"""The named checkpoints of the family and the settings that each was trained with.

To add a preset, add an entry to :data:`PRESETS`; nothing else needs to change.
"""

from __future__ import annotations

from dataclasses import dataclass

from .checkpoint import EncodingSettings

BUNDLED = "bundled"


@dataclass(frozen=True)
class Preset:
    """How to read and use one published checkpoint.

    ``revision`` is a commit of the hub repository, or None for its newest
    state. ``settings`` are what ``"auto"`` stands for in the estimators.
    ``hidden_size`` is the family's.
    """

    repo_id: str
    revision: str | None
    settings: EncodingSettings
    hidden_size: int = 384


_E5_SMALL = Preset(
    repo_id="intfloat/multilingual-e5-small",
    revision="fd1525a9fd15316a2d503bf26ab031a61d056e98",
    settings=EncodingSettings(pooling="mean", normalize=True, prompt="text: ", max_length=512),
)

PRESETS: dict[str, Preset] = {
    BUNDLED: _E5_SMALL,
    "multilingual-e5-small": _E5_SMALL,
    "multilingual-minilm": Preset(
        repo_id="microsoft/Multilingual-MiniLM-L12-H384",
        revision=None,
        settings=EncodingSettings(pooling="mean", normalize=False, prompt="", max_length=512),
    ),
    "paraphrase-multilingual-minilm": Preset(
        repo_id="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        revision="e8f8c211226b894fcb81acc59f3b34ba3efd5f42",
        settings=EncodingSettings(pooling="mean", normalize=False, prompt="", max_length=128),
    ),
}

_BY_REPO_ID = {preset.repo_id: preset for preset in PRESETS.values()}


def find_preset(model: str) -> Preset | None:
    """Return the preset whose name or hub id is `model`, or None."""
    return PRESETS.get(model) or _BY_REPO_ID.get(model)
