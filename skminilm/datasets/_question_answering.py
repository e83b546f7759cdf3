"""Question answering: SQuAD, MLQA, XQuAD and TyDi QA (gold passage)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._validation import shorten
from ._files import (
    field,
    find_file,
    missing_files,
    names_by_language,
    parse_object,
    read_jsonl,
    read_text,
    select_languages,
)
from ._hub import config_names, is_hub_dataset, read_languages, read_split

# What the ids of TyDi QA begin with.
_TYDI_LANGUAGES = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "japanese": "ja",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
    "thai": "th",
}


@dataclass(frozen=True)
class _Row:
    question: str
    context: str
    answers: list[tuple[str, int | None]]
    id: str
    language: str


def load_squad(path: Any, *, split: str = "train", languages: Any = None) -> Bunch:
    """Read a file in the layout of SQuAD [1]_ [2]_, or of one question a line.

    Nothing is downloaded but for a name on the Hugging Face hub. Files of SQuAD
    1.1 and 2.0, MLQA, XQuAD and TyDi QA (gold passage) have this layout. A name
    that ends in ``.jsonl`` or ``.jsonl.gz`` means one JSON object per line with the
    fields context, question, id, answer_text, answer_start, and where they apply
    lang and answers (the texts of all answers).

    Parameters
    ----------
    path : str or path
        The file; unpacked where its name ends in ``.gz``. Or the name of a data
        set on the Hugging Face hub with one configuration and the fields of SQuAD
        (``"rajpurkar/squad"``, ``"rajpurkar/squad_v2"``), or a folder with a copy
        of its repository.
    split : str, default="train"
        Of a data set of the hub, as it calls it; a file is read as a whole.
    languages : str or list of str, default=None
        Two-letter codes of the rows to read. None: all. The language of a row is
        its field lang, or what its id begins with (``swahili-...``, TyDi QA), or en.

    Returns
    -------
    data : Bunch
        Dictionary-like, with the following attributes.

        data : ndarray of object, shape (n_rows, 2)
            Question and context.
        target : ndarray of object, shape (n_rows,)
            The first answer, ``(text, start)``, or None for no answer: what to
            train on.
        answers : ndarray of object, shape (n_rows,)
            All answers, a list of ``(text, start)``: what to score with. start
            counts characters (code points), so that
            ``context[start : start + len(text)] == text``; it is None where the
            file does not tell it.
        ids : ndarray of str, shape (n_rows,)
            Of the questions, as the file has them.
        languages : ndarray of str, shape (n_rows,)
            Of the contexts, and so of the answers.
        groups : ndarray of int64, shape (n_rows,)
            Rows with the same number have the same id. In XQuAD and MLQA they
            are the same question in different languages; that several questions
            share a context is not marked.
        files : list of Path, or of str
            What was read. Of the hub the addresses ``hf://datasets/...``, which say
            the commit.

    Raises
    ------
    FileNotFoundError
        There is no such file or data set.
    ValueError
        A field is missing or wrong, an answer is not where the file says, or a
        language is missing; the file, the line or question, and the field are named.
    ConnectionError
        The hub cannot be reached.
    ImportError
        Data sets of the hub need the library ``datasets``.

    References
    ----------
    .. [1] P. Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine
       Comprehension of Text", EMNLP 2016, arXiv:1606.05250.
    .. [2] P. Rajpurkar et al., "Know What You Don't Know: Unanswerable Questions
       for SQuAD", ACL 2018, arXiv:1806.03822.
    """
    if is_hub_dataset(path):
        names = config_names(path)
        if len(names) > 1:
            raise ValueError(
                f"{path} has several configurations ({', '.join(names[:20])}), and load_squad reads a data set with "
                "one: use load_mlqa, load_xquad or load_tydiqa_goldp."
            )
        return _hub_config(path, names[0], split, languages)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file. Give the path of one, such as SQuAD's train-v1.1.json.")
    return _bunch(_in_languages(_read(path), languages, path), [path])


def load_mlqa(
    data_dir: Any, *, split: str = "test", languages: Any = None, question_language: str | None = None
) -> Bunch:
    """Read MLQA [1]_ from the folder ``MLQA_V1`` (https://github.com/facebookresearch/MLQA).

    Parameters
    ----------
    data_dir : str or path
        ``MLQA_V1``, or the folder that holds it. The files are
        ``<split>/<split>-context-<language>-question-<language>.json``. Or a name
        on the Hugging Face hub, ``"facebook/mlqa"``, or a folder with a copy of
        such a repository: one configuration ``mlqa.<context>.<question>`` for each
        pair of languages.
    split : {"dev", "test"}, default="test"
    languages : str or list of str, default=None
        Two-letter codes of the contexts. None: all that are there.
    question_language : str, default=None
        Of the questions. None: that of the context.

    Returns
    -------
    data : Bunch
        As from :func:`load_squad`.

    Raises
    ------
    FileNotFoundError
        No file was found; those looked for are listed.
    ValueError
        As from :func:`load_squad`.

    References
    ----------
    .. [1] P. Lewis et al., "MLQA: Evaluating Cross-lingual Extractive Question
       Answering", ACL 2020, arXiv:1910.07475.
    """
    if split not in ("dev", "test"):
        raise ValueError(f"split is {split!r}: MLQA has 'dev' and 'test'. Train on SQuAD, see load_squad.")

    if is_hub_dataset(data_dir):
        split = "validation" if split == "dev" else split
        return _hub_languages(
            data_dir, lambda language: f"mlqa.{language}.{question_language or language}", split, languages
        )

    def name(language: str) -> str:
        return f"{split}-context-{language}-question-{question_language or language}.json"

    folders = [Path(data_dir) / folder / split for folder in ("MLQA_V1", "")]
    return _one_file_a_language(data_dir, folders, name, languages)


def load_xquad(data_dir: Any, *, languages: Any = None) -> Bunch:
    """Read XQuAD [1]_, 1,190 questions in each of 12 languages: a test set.

    Parameters
    ----------
    data_dir : str or path
        The folder with ``xquad.<language>.json``
        (https://github.com/google-deepmind/xquad), or with ``xquad.jsonl.gz``,
        which has the layout that :func:`load_squad` describes. Or a name on the
        Hugging Face hub, ``"google/xquad"``, or a folder with a copy of such a
        repository: one configuration ``xquad.<language>`` each.
    languages : str or list of str, default=None
        Two-letter codes. None: all that are there.

    Returns
    -------
    data : Bunch
        As from :func:`load_squad`.

    Raises
    ------
    FileNotFoundError
        No file was found; those looked for are listed.
    ValueError
        As from :func:`load_squad`.

    References
    ----------
    .. [1] M. Artetxe et al., "On the Cross-lingual Transferability of
       Monolingual Representations", ACL 2020, arXiv:1910.11856.
    """
    if is_hub_dataset(data_dir):
        return _hub_languages(data_dir, lambda language: f"xquad.{language}", "validation", languages)
    compact = Path(data_dir) / "xquad.jsonl.gz"
    if compact.is_file():
        return load_squad(compact, languages=languages)
    folders = [Path(data_dir) / "xquad", Path(data_dir)]
    return _one_file_a_language(
        data_dir, folders, lambda language: f"xquad.{language}.json", languages, [compact]
    )


def load_tydiqa_goldp(data_dir: Any, *, split: str = "train", languages: Any = None) -> Bunch:
    """Read the gold-passage task of TyDi QA [1]_.

    Parameters
    ----------
    data_dir : str or path
        The folder with ``tydiqa-goldp-v1.1-<split>.json``
        (https://github.com/google-research-datasets/tydiqa), or, for training,
        with ``tydiqa_goldp.jsonl.gz``, which has the layout that
        :func:`load_squad` describes. Or a name on the Hugging Face hub,
        ``"google-research-datasets/tydiqa"``, or a folder with a copy of that
        repository: its configuration ``secondary_task``.
    split : {"train", "dev"}, default="train"
    languages : str or list of str, default=None
        Two-letter codes. None: all that are there.

    Returns
    -------
    data : Bunch
        As from :func:`load_squad`.

    Raises
    ------
    FileNotFoundError
        No file was found; those looked for are listed.
    ValueError
        As from :func:`load_squad`.

    Notes
    -----
    The primary tasks of TyDi QA count bytes. The gold-passage files follow SQuAD,
    which counts characters; should an answer stand elsewhere, the error says
    whether its offset fits bytes.

    References
    ----------
    .. [1] J. H. Clark et al., "TyDi QA: A Benchmark for Information-Seeking
       Question Answering in Typologically Diverse Languages", TACL 2020,
       arXiv:2003.05002.
    """
    if split not in ("train", "dev"):
        raise ValueError(f"split is {split!r}: expected 'train' or 'dev'.")
    if is_hub_dataset(data_dir):
        return _hub_config(data_dir, "secondary_task", "validation" if split == "dev" else split, languages)
    names = [f"tydiqa-goldp-v1.1-{split}.json"]
    if split == "train":
        names.append("tydiqa_goldp.jsonl.gz")
    return load_squad(find_file(data_dir, names), languages=languages)


def _one_file_a_language(
    data_dir: Any, folders: list[Path], name: Any, languages: Any, others: Iterable[Path] = ()
) -> Bunch:
    """Read the files of the first folder that has any."""
    for folder in folders:
        found = names_by_language(sorted(file.name for file in folder.glob("*.json")), name)
        if found:
            chosen = select_languages(list(found), languages, folder)
            files = [folder / found[language] for language in chosen]
            rows = [
                row for language, file in zip(chosen, files, strict=True) for row in _read(file, language)
            ]
            return _bunch(rows, files)
    looked_for = [*(folder / name("<language>") for folder in folders), *others]
    raise missing_files(data_dir, [str(file.relative_to(data_dir)) for file in looked_for])


def _hub_languages(source: Any, name_of: Callable[[str], str], split: str, languages: Any) -> Bunch:
    """Read one configuration a language of a data set of the hub."""
    rows: list[_Row] = []
    files: list[Any] = []
    for language, records, read in read_languages(source, name_of, split, languages):
        rows += _hub_rows(records, f"{source}, {name_of(language)} {split}", language)
        files += read
    return _bunch(rows, files)


def _hub_config(source: Any, config: str, split: str, languages: Any) -> Bunch:
    """Read one configuration, whose ids tell the language."""
    records, files = read_split(source, config, split)
    where = f"{source}, {config} {split}"
    return _bunch(_in_languages(_hub_rows(records, where, None), languages, source), files)


def _hub_rows(records: Iterable[dict], source: str, language: str | None) -> Iterator[_Row]:
    for number, record in enumerate(records):
        question_id = field(record, "id", str, f"{source}, row {number}")
        where = f"{source}, question {question_id!r}"
        question, context = (field(record, name, str, where) for name in ("question", "context"))
        columns = field(record, "answers", dict, where)
        texts, starts = (field(columns, name, list, where) for name in ("text", "answer_start"))
        answers = list(zip(texts, starts, strict=True))
        for text, start in answers:
            _check_offset(context, text, start, where)
        yield _Row(question, context, answers, question_id, language or _language_of(question_id))


def _in_languages(rows: Iterable[_Row], languages: Any, source: Any) -> list[_Row]:
    rows = list(rows)
    chosen = select_languages(list(dict.fromkeys(row.language for row in rows)), languages, source)
    return [row for row in rows if row.language in chosen]


def _bunch(rows: Iterable[_Row], files: list[Any]) -> Bunch:
    rows = list(rows)
    if not rows:
        raise ValueError(f"{files[0]} has no questions. Download it again.")
    data = np.empty((len(rows), 2), dtype=object)
    target, answers = np.empty(len(rows), dtype=object), np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        data[number] = row.question, row.context
        answers[number] = row.answers
        target[number] = row.answers[0] if row.answers else None
    known: dict[str, int] = {}
    return Bunch(
        data=data,
        target=target,
        answers=answers,
        ids=np.array([row.id for row in rows]),
        languages=np.array([row.language for row in rows]),
        groups=np.array([known.setdefault(row.id, len(known)) for row in rows], dtype=np.int64),
        files=files,
    )


def _read(path: Path, language: str | None = None) -> Iterator[_Row]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _read_lines(path, language)
    return _read_squad(path, language)


def _read_squad(path: Path, language: str | None) -> Iterator[_Row]:
    content = parse_object(read_text(path), str(path))
    for article_number, article in enumerate(field(content, "data", list, str(path))):
        where = f"{path}, article {article_number}"
        for number, paragraph in enumerate(field(article, "paragraphs", list, where)):
            where = f"{path}, article {article_number}, paragraph {number}"
            context = field(paragraph, "context", str, where)
            for qa in field(paragraph, "qas", list, where):
                question_id = field(qa, "id", str, where)
                where_question = f"{path}, question {question_id!r}"
                question = field(qa, "question", str, where_question)
                answers = []
                # SQuAD 2.0 keeps plausible answers apart, and leaves the answers of such a question empty.
                for answer in field(qa, "answers", list, where_question):
                    text = field(answer, "text", str, where_question)
                    start = field(answer, "answer_start", int, where_question)
                    _check_offset(context, text, start, where_question)
                    answers.append((text, start))
                if qa.get("is_impossible") is True and answers:
                    raise ValueError(
                        f"{where_question} is marked is_impossible and has the answer {answers[0][0]!r}. Remove one "
                        "of the two."
                    )
                yield _Row(question, context, answers, question_id, language or _language_of(question_id))


def _read_lines(path: Path, language: str | None) -> Iterator[_Row]:
    for line, record in read_jsonl(path):
        where = f"{path}, line {line}"
        names = ("question", "context", "id", "answer_text")
        question, context, question_id, text = (field(record, name, str, where) for name in names)
        answers: list[tuple[str, int | None]] = []
        if text:
            start = field(record, "answer_start", int, where)
            _check_offset(context, text, start, where)
            answers.append((text, start))
        others = field(record, "answers", list, where) if "answers" in record else []
        for other in others:
            if not isinstance(other, str):
                raise ValueError(f"{where}: the field 'answers' holds {shorten(other)}, expected str.")
            if other != text:
                answers.append((other, None))
        written = field(record, "lang", str, where) if "lang" in record else _language_of(question_id)
        yield _Row(question, context, answers, question_id, language or written)


def _language_of(question_id: str) -> str:
    return _TYDI_LANGUAGES.get(question_id.split("-")[0], "en")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _check_offset(context: str, text: str, start: int, where: str) -> None:
    end = start + len(text)
    if start >= 0 and context[start:end] == text and text:
        return
    if not text:
        raise ValueError(
            f"{where}: an answer is empty. A question without an answer has no entry in 'answers'."
        )
    message = f"{where}: the answer {shorten(text)} is not at answer_start={start}, where the context has "
    message += f"{shorten(context[max(start, 0) : max(end, 0)])}."
    if start >= 0 and _utf8(context)[start:].startswith(_utf8(text)):
        message += " The offset fits bytes of UTF-8, and characters are expected: convert it."
    elif text in context:
        message += f" It first occurs at {context.index(text)}."
    raise ValueError(message)
