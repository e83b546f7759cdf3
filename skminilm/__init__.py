"""scikit-learn estimators over the multilingual MiniLM family.

Importing this package imports no torch, opens no file and no connection.
"""

from ._cache import clear_cache, set_config
from ._classifier import MiniLMClassifier
from ._encoder import MiniLMEncoder
from ._question_answerer import MiniLMQuestionAnswerer
from ._regressor import MiniLMRegressor
from ._zero_shot import MiniLMZeroShotClassifier

__version__ = "0.1.0"
__all__ = [
    "MiniLMClassifier",
    "MiniLMEncoder",
    "MiniLMQuestionAnswerer",
    "MiniLMRegressor",
    "MiniLMZeroShotClassifier",
    "clear_cache",
    "set_config",
]
