"""MiniLMEncoder: text in many languages to vectors."""

from __future__ import annotations

import os
from dataclasses import asdict
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import StrOptions

from ._base import TextEstimator
from ._cache import VectorCache, open_cache
from ._encoding import (
    encode_texts,
    open_checkpoint,
    resolve_settings,
    warn_of_second_prompt,
    warn_of_truncation,
)
from ._folders import new_folder
from ._parameters import PRECISIONS, NumberInterval
from ._validation import Texts, check_texts
from ._warnings import warn
from .checkpoints import LONG_TEXTS, POOLINGS, Checkpoint, EncodingSettings, known_hidden_size

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._disk_cache import DiskVectorCache
    from .engine import Compute


class _Call(NamedTuple):
    """What is said of the last call of transform."""

    n_truncated: int
    max_tokens: int


# Beside the estimators, not in them: a call of transform changes no attribute.
_last_calls: WeakKeyDictionary[MiniLMEncoder, _Call] = WeakKeyDictionary()


class MiniLMEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TextEstimator):
    """Encode texts in about 100 languages as vectors.

    The encoder learns nothing from the data: `transform` works without `fit`,
    and equal texts have equal vectors in every call. The weights are loaded
    once per process, at first use, and shared by all estimators.

    Parameters
    ----------
    model : str or path, default="bundled"
        Where the weights come from: ``"bundled"`` (multilingual-e5-small in 4
        bits, needs no network), a preset (``"multilingual-e5-small"``,
        ``"multilingual-minilm"``, ``"paraphrase-multilingual-minilm"``), any
        hub id, or a local folder in the layout of transformers or of
        sentence-transformers.
    revision : str, default=None
        Commit, tag or branch of a hub repository. None takes the preset's
        commit if it has one, or the newest state of the repository.
    pooling : {"auto", "mean", "cls", "max"}, default="auto"
        From token states to one vector. ``"auto"``: as the checkpoint was
        trained.
    normalize : bool or "auto", default="auto"
        Scale each vector to the Euclidean norm 1. ``"auto"``: as the
        checkpoint was trained.
    prompt : str or None, default="auto"
        Text put before every text (of a pair, before the first). ``"auto"``:
        for ``"bundled"`` and multilingual-e5-small ``"text: "``, which served
        best on the development data of several tasks, see Notes; for others the
        default prompt stored in the checkpoint, if there is one. None: no prompt.
        Not the name of one: ``"query: "``, not ``"query"``.
    max_length : int or "auto", default="auto"
        Tokens per text at the most, special tokens included; what is beyond is cut
        off with a warning. ``"auto"``: the checkpoint's limit.
    precision : {"auto", "fp32", "bf16", "fp16", "int16", "int8"}, default="auto"
        Precision of the computation; the vectors are always float32.
        ``"auto"`` is bfloat16 where the hardware has it, float16 on older
        GPUs, ``"int16"`` on other CPUs that support it, else float32.
        ``"int16"`` and ``"int8"`` multiply integers, with a separate range for
        each token, and need a CPU with AVX2 and the compiled kernels: the
        former is closer to float32 than bfloat16 is, the latter is faster.
    backend : {"torch", "openvino"}, default="torch"
        The library that computes. ``"openvino"`` is for CPUs and an extra:
        ``pip install "skminilm[openvino]"``.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``"auto"``: a GPU where one is
        present; several GPUs of one kind share the texts of a call.
    batch_tokens : int or "auto", default="auto"
        Tokens computed at once: more takes more memory. ``"auto"`` is 2,048
        on a CPU (4,096 in bfloat16), 1,024 with ``backend="openvino"``,
        65,536 on a GPU, and 4,096 where sentence-transformers computes. The
        vectors do not depend on it (on a GPU, but for rounding).
    long_text : {"truncate", "head_tail", "chunk_mean"}, default="truncate"
        What becomes of a text with more than `max_length` tokens.
        ``"truncate"`` keeps its beginning, ``"head_tail"`` the first quarter
        of the limit and the end [2]_; both warn. ``"chunk_mean"`` cuts it into
        windows and takes the mean of their vectors, weighted by tokens; the
        prompt is in the first one alone.
        Sentence pairs are truncated, the longer text first.
    missing : {"error", "empty"}, default="error"
        What None, NaN and NA among the texts do: raise, or count as ``""``.
    cache : {"memory", None}, or path of a folder, default="memory"
        ``"memory"`` keeps vectors for the life of the process, shared by all
        estimators and bounded by ``set_config(cache_bytes=...)``, so that a
        grid search encodes each text once. A folder keeps them on disk,
        shared by processes (``n_jobs=-1``) and by runs, bounded by
        ``set_config(disk_cache_bytes=...)``; on a disk of this machine, for
        hosts that share a network file system cannot share it. None keeps
        nothing.
    local_files_only : bool, default=False
        Never ask a model hub.
    calibration_texts : sequence of str, default=None
        For ``precision="int8"`` with ``backend="openvino"``: texts like those
        to be encoded, from which the ranges of the 8-bit numbers are
        measured. None takes texts in 16 languages that ship with the package.
        The first call with new ones takes a minute; the result is kept on disk.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    fingerprint_ : str
        sha256 of the weights, tokenizer and configuration seen by `fit`. A
        fitted encoder refuses to run with others.
    defaults_ : dict
        What ``"auto"`` stood for at `fit`, and stands for since: pooling,
        normalize, prompt, max_length; and the default of long_text.
    hidden_size_ : int
        Numbers of a vector.
    n_features_in_ : int
        Columns seen by `fit`: 1, or 2 for sentence pairs. A fitted encoder
        refuses another number.
    feature_names_in_ : ndarray of str, shape (n_columns,)
        Their names, where `fit` saw a data frame whose column names are str.
        A data frame with other names is refused then; one column may come
        without a name.
    n_truncated_ : int
        Texts of the last call of `transform` or `fit_transform` that were
        longer than `max_length`.
    max_tokens_ : int
        Tokens of the longest text of that call, before truncation.

    See Also
    --------
    MiniLMClassifier : Fine-tunes the same network.

    Notes
    -----
    The network is a 12-layer BERT distilled from XLM-R [1]_. See
    ``docs/choosing-a-model.md`` for the checkpoints and how ``prompt="auto"``
    was chosen.

    References
    ----------
    .. [1] W. Wang et al., "MiniLM: Deep Self-Attention Distillation for
       Task-Agnostic Compression of Pre-Trained Transformers", 2020,
       arXiv:2002.10957.
    .. [2] C. Sun et al., "How to Fine-Tune BERT for Text Classification?",
       2019, arXiv:1905.05583, section 5.3.1.

    Examples
    --------
    >>> from skminilm import MiniLMEncoder
    >>> vectors = MiniLMEncoder().transform(["Good morning", "Guten Morgen", "おはよう"])
    >>> vectors.shape, vectors.dtype.name
    ((3, 384), 'float32')
    """

    fingerprint_: str
    defaults_: dict[str, Any]
    hidden_size_: int

    _parameter_constraints = {  # noqa: RUF012
        "model": "no_validation",
        "revision": [str, None],
        "pooling": [StrOptions({"auto", *POOLINGS})],
        "normalize": ["boolean", StrOptions({"auto"})],
        "prompt": [str, None],
        "max_length": [NumberInterval(Integral, 3, None, closed="left"), StrOptions({"auto"})],
        "precision": [StrOptions(set(PRECISIONS))],
        "backend": [StrOptions({"torch", "openvino"})],
        "device": [str],
        "batch_tokens": [NumberInterval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "long_text": [StrOptions(set(LONG_TEXTS))],
        "missing": [StrOptions({"error", "empty"})],
        "cache": [str, os.PathLike, None],
        "local_files_only": ["boolean"],
        "calibration_texts": ["array-like", None],
        "verbose": ["verbose"],
    }

    __single_column_transformer__ = (
        True  # skrub's protocol: its ApplyToCols gives each column by itself, not pairs
    )

    def __init__(
        self,
        model: str | os.PathLike[str] = "bundled",
        *,
        revision: str | None = None,
        pooling: str = "auto",
        normalize: bool | str = "auto",
        prompt: str | None = "auto",
        max_length: int | str = "auto",
        precision: str = "auto",
        backend: str = "torch",
        device: str = "auto",
        batch_tokens: int | str = "auto",
        long_text: str = "truncate",
        missing: str = "error",
        cache: str | os.PathLike[str] | None = "memory",
        local_files_only: bool = False,
        calibration_texts: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.pooling = pooling
        self.normalize = normalize
        self.prompt = prompt
        self.max_length = max_length
        self.precision = precision
        self.backend = backend
        self.device = device
        self.batch_tokens = batch_tokens
        self.long_text = long_text
        self.missing = missing
        self.cache = cache
        self.local_files_only = local_files_only
        self.calibration_texts = calibration_texts
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and X, and remember which weights are used.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs. They are checked, not
            encoded.
        y : None
            Ignored.

        Returns
        -------
        self : MiniLMEncoder
            The fitted estimator.
        """
        self._validate_params()
        texts = check_texts(X, missing=self.missing)
        self._check_long_text(texts)
        checkpoint = self._open(fitted=False)
        self._resolve(checkpoint, checkpoint.defaults)
        open_cache(self.cache)  # a wrong one is found now, not at transform
        self._remember(checkpoint, texts)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, then transform; for errors and warnings see :meth:`transform`.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs.
        y : None
            Ignored.

        Returns
        -------
        ndarray of float32, shape (n_texts, 384)
            As of :meth:`transform`.
        """
        self._validate_params()
        texts = check_texts(X, missing=self.missing)
        checkpoint = self._open(fitted=False)
        open_cache(self.cache)
        vectors = self._encode(texts, checkpoint, checkpoint.defaults)
        self._remember(checkpoint, texts)
        return vectors

    def transform(self, X: Any) -> np.ndarray:
        """Encode texts.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs, encoded together as
            ``<s> A </s></s> B </s>``: their common vector says what both are
            about, and little of how they differ. To compare the texts use
            :class:`MiniLMClassifier`, or the vectors u and v of both columns
            with abs(u - v) and u * v.

        Returns
        -------
        ndarray of float32, shape (n_texts, 384)
            In the order of X. The second dimension is the hidden size of the
            checkpoint.

        Raises
        ------
        TypeError
            X is a bare str, or a value is not a str.
        ValueError
            X is empty, ragged or has missing values; a parameter is out of
            its range; the weights or columns are not those that `fit` saw; or
            `model` is neither a preset, nor a folder, nor a possible hub id.
        OSError
            The checkpoint is missing or damaged.
        ImportError
            The backend needs a package that is not installed.
        FloatingPointError
            A vector is not finite.

        Warns
        -----
        UserWarning
            Texts longer than `max_length` were cut off; once per call. Or texts
            begin with a prompt, and ``prompt="auto"`` puts another one before.
        """
        texts = self._checked_texts(X, lambda X: check_texts(X, missing=self.missing))
        return self._encode(texts, *self._open_with_defaults())

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the network to a folder that other packages read.

        ``SentenceTransformer(path).encode(texts)`` gives the vectors of
        :meth:`transform`, with its pooling, prompt and `max_length`, and
        ``AutoModel.from_pretrained(path)`` the token states below. All weights
        are there, in float32: 0.5 GB. There is no pooler, which no vector here
        goes through: transformers makes a random one, and says so.

        Parameters
        ----------
        path : path
            A new folder.

        Raises
        ------
        ValueError
            The checkpoint is of another architecture, has other weights than
            when this encoder was fitted, or its tokenizer cannot be written as
            transformers reads it; `long_text` is not ``"truncate"``, which
            other packages do not know.
        FileExistsError
            Something is there.
        OSError
            A file of the checkpoint is missing or damaged, or the folder cannot
            be written.
        """
        from .engine import export_network, own_modes

        self._validate_params()
        checkpoint, defaults = self._open_with_defaults()
        if checkpoint.foreign_reason:
            raise ValueError(
                f"{self.model!r} runs through sentence-transformers, which can read it as it is: {checkpoint.foreign_reason}."
            )
        if self.long_text != "truncate":
            raise ValueError(
                f"long_text={self.long_text!r} is not known to other packages: set long_text='truncate' to export."
            )
        settings = self._settings(checkpoint, defaults)
        with new_folder(path) as folder, own_modes(inference=True):
            export_network(folder, checkpoint, settings, None)

    def _open_with_defaults(self) -> tuple[Checkpoint, EncodingSettings]:
        """Return the checkpoint, and what "auto" stands for."""
        checkpoint = self._open(fitted=True)
        defaults = EncodingSettings(**self.defaults_) if hasattr(self, "defaults_") else checkpoint.defaults
        return checkpoint, defaults

    def _remember(self, checkpoint: Checkpoint, texts: Texts) -> None:
        self._set_attributes(
            {
                "fingerprint_": checkpoint.fingerprint,
                "defaults_": asdict(checkpoint.defaults),
                "hidden_size_": checkpoint.hidden_size,
                **self._column_attributes(texts),
            }
        )

    def _open(self, *, fitted: bool) -> Checkpoint:
        return open_checkpoint(
            self.model,
            self.revision,
            local_files_only=self.local_files_only,
            fingerprint=getattr(self, "fingerprint_", None) if fitted else None,
        )

    def _settings(self, checkpoint: Checkpoint, defaults: EncodingSettings) -> EncodingSettings:
        return resolve_settings(
            checkpoint,
            defaults,
            pooling=self.pooling,
            normalize=self.normalize,
            prompt=self.prompt,
            max_length=self.max_length,
            long_text=self.long_text,
        )

    def _resolve(
        self, checkpoint: Checkpoint, defaults: EncodingSettings
    ) -> tuple[EncodingSettings, Compute]:
        from .engine import resolve_compute

        settings = self._settings(checkpoint, defaults)
        calibration = self.calibration_texts
        if calibration is not None:
            texts = check_texts(calibration, "calibration_texts")
            if texts.second is not None:
                raise ValueError("calibration_texts has two columns: give one, single texts.")
            calibration = tuple(texts.first)
        compute = resolve_compute(
            self.backend, self.device, self.precision, calibration, config=checkpoint.config
        )
        return settings, compute

    def _check_long_text(self, texts: Texts) -> None:
        if texts.second is not None and self.long_text != "truncate":
            raise ValueError(
                f"long_text={self.long_text!r} is for single texts, and X has two columns: use "
                "long_text='truncate', which shortens the longer text of a pair first."
            )

    def _encode(self, texts: Texts, checkpoint: Checkpoint, defaults: EncodingSettings) -> np.ndarray:
        self._check_long_text(texts)
        settings, compute = self._resolve(checkpoint, defaults)
        warn_of_second_prompt(texts, self.prompt, settings)
        vectors, lengths = encode_texts(
            texts,
            checkpoint,
            settings,
            compute=compute,
            cache=self._open_cache(),
            batch_tokens=None if self.batch_tokens == "auto" else int(self.batch_tokens),
            verbose=self.verbose,
        )
        # Before the warning, which may be turned into an error.
        _last_calls[self] = _Call(int((lengths > settings.max_length).sum()), int(lengths.max()))
        warn_of_truncation(lengths, settings)
        return vectors

    def _open_cache(self) -> VectorCache | DiskVectorCache | None:
        try:
            return open_cache(self.cache)
        except (OSError, ValueError) as error:
            if not hasattr(self, "fingerprint_"):
                raise
            # It was fitted elsewhere, where there was such a folder.
            warn(f"{error} Until then vectors are computed.")
            return None

    @property
    def n_truncated_(self) -> int:
        """Texts of the last call that were longer than `max_length`; copies and pickles know of no call."""
        return self._last_call("n_truncated_").n_truncated

    @property
    def max_tokens_(self) -> int:
        """Tokens of the longest text of the last call, before truncation; copies and pickles know of no call."""
        return self._last_call("max_tokens_").max_tokens

    def _last_call(self, attribute: str) -> _Call:
        try:
            return _last_calls[self]
        except KeyError:
            raise AttributeError(f"{attribute} is there after the first transform.") from None

    @property
    def _n_features_out(self) -> int:
        # dir() and a notebook's display ask as well: nothing is downloaded for them, and what fails is not there.
        if hasattr(self, "hidden_size_"):
            return self.hidden_size_
        try:
            size = known_hidden_size(self.model, self.revision)
        except (OSError, TypeError, ValueError) as error:
            raise AttributeError(f"the size of vectors is not known: {error}") from error
        if size is None:
            raise AttributeError("the size of vectors is known after fit or transform.")
        return size

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.allow_nan = self.missing == "empty"
        tags.transformer_tags.preserves_dtype = []
        return tags
