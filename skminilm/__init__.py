"""scikit-learn estimators over the multilingual MiniLM family.

Importing this package imports no torch, opens no file and no connection. Its names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets, metrics
    from ._answers import AnswerSpan
    from ._cache import clear_cache, release_models, set_config
    from ._classifier import MiniLMClassifier
    from ._encoder import MiniLMEncoder
    from ._question_answerer import MiniLMQuestionAnswerer
    from ._regressor import MiniLMRegressor
    from ._show_versions import show_versions
    from ._zero_shot import MiniLMZeroShotClassifier

__version__ = "0.1.0"
__all__ = [
    "AnswerSpan",
    "MiniLMClassifier",
    "MiniLMEncoder",
    "MiniLMQuestionAnswerer",
    "MiniLMRegressor",
    "MiniLMZeroShotClassifier",
    "clear_cache",
    "datasets",
    "metrics",
    "release_models",
    "set_config",
    "show_versions",
]

_MODULES = {
    "AnswerSpan": "._answers",
    "MiniLMClassifier": "._classifier",
    "MiniLMEncoder": "._encoder",
    "MiniLMQuestionAnswerer": "._question_answerer",
    "MiniLMRegressor": "._regressor",
    "MiniLMZeroShotClassifier": "._zero_shot",
    "clear_cache": "._cache",
    "release_models": "._cache",
    "set_config": "._cache",
    "show_versions": "._show_versions",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name], __name__), name)
    else:
        value = import_module(f".{name}", __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
