"""Cross-validation over languages, in which no translation of a test row is trained on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import BaseCrossValidator, KFold
from sklearn.utils import check_consistent_length

from .._rows import as_rows, check_languages, check_same_length
from .._validation import is_missing, shorten


class _LanguageSplitter(BaseCrossValidator):
    """What both splitters share: languages as groups, and folds over translations."""

    __metadata_request__split = {"groups": True}  # noqa: RUF012

    translations: Any
    n_folds: int
    random_state: int

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows to train on and the rows to test on.

        Parameters
        ----------
        X : array-like of length n_rows
        y : array-like, default=None
            Not used.
        groups : array-like of str, length n_rows
            Language of each row.

        Yields
        ------
        train : ndarray of int64
        test : ndarray of int64

        Raises
        ------
        ValueError
            Languages or translations do not fit; or nothing is left to train on.
        """
        check_consistent_length(X, groups)
        for train, test, where in self._masks(*self._languages(groups)):
            if not train.any():
                raise ValueError(
                    f"Nothing is left to train on {where}: every other row is a translation of a test row. "
                    "Raise n_folds."
                )
            yield np.flatnonzero(train), np.flatnonzero(test)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return how many splits there are.

        Parameters
        ----------
        X, y : array-like, default=None
            Not used.
        groups : array-like of str, length n_rows
            Language of each row.

        Returns
        -------
        int
            One for each test language; with translations, for each part in
            which it has rows.
        """
        return sum(1 for _ in self._masks(*self._languages(groups)))

    @abstractmethod
    def _masks(self, names: list[str], languages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        """Yield the rows to train and to test on, and a name for the test; `languages` are positions in `names`."""

    def _languages(self, groups: Any) -> tuple[list[str], np.ndarray]:
        """Return the languages in the order in which they appear first, and the position of each row's."""
        if groups is None:
            raise ValueError(
                f"{type(self).__name__} needs the language of each row: pass groups=languages, with one code a row."
            )
        rows = as_rows(groups, "groups")
        position: dict[str, int] = {}
        languages = check_languages(rows, len(rows), "groups")
        codes = np.array([position.setdefault(language, len(position)) for language in languages], np.int64)
        return list(position), codes

    def _folds(self, languages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the code of each row's translations, and the part that they are in."""
        if not isinstance(self.n_folds, Integral) or self.n_folds < 2:
            raise ValueError(f"n_folds is {self.n_folds!r}: expected an int of at least 2.")
        if not isinstance(self.random_state, Integral):  # split and get_n_splits each draw the parts
            raise ValueError(f"random_state is {self.random_state!r}: expected an int.")
        translations = as_rows(self.translations, "translations")
        check_same_length(translations, len(languages), "translations", "number")
        for row, value in enumerate(translations):
            if is_missing(value):
                raise ValueError(
                    f"translations has a missing value: row {row} is {value!r}. Give a row without translations "
                    "a number of its own."
                )
            if not isinstance(value, Hashable):
                raise TypeError(
                    f"translations must hold values such as int or str: row {row} is {shorten(value)}."
                )
        known: dict[Any, int] = {}
        codes = np.array([known.setdefault(value, len(known)) for value in translations])
        if len(known) < self.n_folds:
            raise ValueError(
                f"translations has {len(known)} different values, fewer than n_folds={self.n_folds}: lower n_folds."
            )
        fold_of = np.empty(len(known), np.int64)
        splitter = KFold(self.n_folds, shuffle=True, random_state=self.random_state)
        for fold, (_, held) in enumerate(splitter.split(fold_of)):
            fold_of[held] = fold
        return codes, fold_of[codes]


class LeaveOneLanguageOut(_LanguageSplitter):
    """Train on all languages but one, test on that one.

    Pass it as ``cv=``, and the language of each row as ``groups=``.

    Parameters
    ----------
    translations : array-like of length n_rows, default=None
        Rows with the same value are translations of each other (or belong
        together in another way, such as by a common context). None: no rows are.
    n_folds : int, default=5
        With `translations`, the parts in which each language is tested.
        Trained on are the rows of the other languages that are no
        translations of rows in the part.
    random_state : int, default=0
        Draws the parts, which are the same for all languages.

    See Also
    --------
    TrainOneLanguageTestOthers : Transfer from one language.
    sklearn.model_selection.LeaveOneGroupOut : The same without translations.

    Notes
    -----
    Splits come in the order in which languages appear first, all parts of a
    language in a row. With rows that exist in every language, a training set has
    (n_folds - 1) / n_folds of the other languages.

    Examples
    --------
    >>> from skminilm.metrics import LeaveOneLanguageOut
    >>> languages = ["en", "en", "sw", "sw", "sw"]
    >>> splitter = LeaveOneLanguageOut(translations=["a", "b", "a", "b", "c"], n_folds=2)
    >>> for train, test in splitter.split(languages, groups=languages):
    ...     print(train.tolist(), test.tolist())
    [2, 4] [1]
    [3, 4] [0]
    [0] [3, 4]
    [1] [2]
    """

    def __init__(self, translations: Any = None, *, n_folds: int = 5, random_state: int = 0) -> None:
        self.translations = translations
        self.n_folds = n_folds
        self.random_state = random_state

    def _masks(self, names: list[str], languages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        if len(names) < 2:
            raise ValueError(
                f"groups has one language only, {names}: leaving it out leaves nothing to train on."
            )
        if self.translations is None:
            for number, name in enumerate(names):
                yield languages != number, languages == number, f"for {name!r}"
            return
        codes, folds = self._folds(languages)
        for number, name in enumerate(names):
            for fold in range(self.n_folds):
                test = (languages == number) & (folds == fold)
                train = (languages != number) & ~np.isin(codes, codes[test])
                if test.any():
                    yield train, test, f"for {name!r}, part {fold}"


class TrainOneLanguageTestOthers(_LanguageSplitter):
    """Train on one language, test on each of the others.

    Pass it as ``cv=``, and the language of each row as ``groups=``.

    Parameters
    ----------
    train_language : str, default="en"
        The language to train on.
    translations : array-like of length n_rows, default=None
        Rows with the same value are translations of each other (or belong
        together in another way, such as by a common context). None: no rows are.
    n_folds : int, default=5
        With `translations`, the parts in which each language is tested. Trained
        on are the rows of the training language that are no translations of
        rows in the part, in any language: the same for all of them.
    random_state : int, default=0
        Draws the parts, which are the same for all languages.

    See Also
    --------
    LeaveOneLanguageOut : Train on several languages.

    Notes
    -----
    Splits come in the order in which languages appear first; with translations,
    all languages of a part in a row. Rows of the training language without
    translations are trained on in every split.

    Examples
    --------
    >>> from skminilm.metrics import TrainOneLanguageTestOthers
    >>> languages = ["en", "en", "en", "sw", "th", "th"]
    >>> for train, test in TrainOneLanguageTestOthers().split(languages, groups=languages):
    ...     print(train.tolist(), test.tolist())
    [0, 1, 2] [3]
    [0, 1, 2] [4, 5]
    """

    def __init__(
        self,
        train_language: str = "en",
        translations: Any = None,
        *,
        n_folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.train_language = train_language
        self.translations = translations
        self.n_folds = n_folds
        self.random_state = random_state

    def _masks(self, names: list[str], languages: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        if self.train_language not in names:
            raise ValueError(f"train_language is {self.train_language!r}, and groups has {names}.")
        if len(names) < 2:
            raise ValueError(f"groups has one language only, {names}: there is no other to test on.")
        own = names.index(self.train_language)
        is_train = languages == own
        others = [number for number in range(len(names)) if number != own]
        if self.translations is None:
            for number in others:
                yield is_train, languages == number, f"for {names[number]!r}"
            return
        codes, folds = self._folds(languages)
        for fold in range(self.n_folds):
            held = ~is_train & (folds == fold)
            train = is_train & ~np.isin(codes, codes[held])
            for number in others:
                test = (languages == number) & (folds == fold)
                if test.any():
                    yield train, test, f"in part {fold}"
