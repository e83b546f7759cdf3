"""Customer requests in 16 languages."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._shipped_texts import support_request_rows

TARGET_NAMES = [
    "account_access",
    "appointment",
    "billing",
    "cancellation",
    "delivery",
    "product_question",
    "return_refund",
    "technical_problem",
]

_DESCR = """\
Support requests: what customers write to a shop, in 16 languages
------------------------------------------------------------------

:Rows: 1,024 (8 intents, 8 items an intent, 16 languages)
:Target: the intent: account_access, appointment, billing, cancellation,
    delivery, product_question, return_refund, technical_problem
:Languages: en ar bg de el es fr hi ru sw th tr ur vi zh pt
:Licence: MIT, as the package

Written for this package. The items are parallel: item 3 of "billing" is the
same request in every language, put as a customer would put it there. The
registers run from formal letters to hurried chat messages.

Because the items are parallel, a model that is trained on an item in one
language has seen that item in all of them: split by `groups` (for example
with ``GroupKFold``), not by rows, to measure what a model can do with
new requests.
"""


def load_support_requests(*, return_X_y: bool = False, as_frame: bool = False) -> Any:
    """Load customer requests in 16 languages (classification, 8 intents).

    1,024 short texts written for this package: 8 intents, 8 items an intent,
    each item in 16 languages.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        Return pandas objects: `data` and `target` as Series, and `frame` with
        the columns text, target, intent, language and group.

    Returns
    -------
    data : Bunch
        Dictionary-like, with the following attributes.

        data : list of str, length 1024 (Series of str with ``as_frame=True``)
            The texts, in blocks of 64 a language.
        target : ndarray of int64, shape (1024,)
            Index into `target_names`.
        target_names : list of str, length 8
            The intents.
        languages : ndarray of str, shape (1024,)
            ISO 639-1 codes.
        groups : ndarray of int64, shape (1024,)
            From 0 to 63: rows with the same number are the same request in
            different languages. Pass them as `groups` to a splitter such as ``GroupKFold``.
        frame : DataFrame
            All columns; only with ``as_frame=True``.
        DESCR : str
            The description of the data set.

    Raises
    ------
    ImportError
        ``as_frame=True`` and pandas is not installed.

    Examples
    --------
    >>> from skminilm.datasets import load_support_requests
    >>> requests = load_support_requests()
    >>> len(requests.data), requests.target_names[requests.target[0]]
    (1024, 'account_access')
    """
    rows = support_request_rows()
    texts: Any = [row["text"] for row in rows]
    intents = [TARGET_NAMES.index(row["intent"]) for row in rows]
    target: Any = np.array(intents, dtype=np.int64)
    languages = np.array([row["language"] for row in rows])
    groups = np.array([8 * t + int(row["item"]) - 1 for t, row in zip(intents, rows, strict=True)])
    bunch = Bunch(target_names=list(TARGET_NAMES), languages=languages, groups=groups, DESCR=_DESCR)
    if as_frame:
        import pandas as pd

        texts = pd.Series(texts, name="text")
        target = pd.Series(target, name="target")
        bunch.frame = pd.DataFrame(
            {
                "text": texts,
                "target": target,
                "intent": [row["intent"] for row in rows],
                "language": languages,
                "group": groups,
            }
        )
    if return_X_y:
        return texts, target
    bunch.data, bunch.target = texts, target
    return bunch
