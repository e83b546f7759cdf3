"""The code of README.md and of the pages in docs runs, and what its comments say it returns is true."""

import ast
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
OTHER_LIBRARIES = "docs/coming-from-other-libraries.md"

# Page and first line of a block: why it is not run.
NOT_RUN = {
    (
        "docs/choosing-a-model.md",
        "from skminilm import MiniLMClassifier, MiniLMQuestionAnswerer, MiniLMRegressor, MiniLMZeroShotClassifier",
    ): "it downloads three checkpoints from the hub",
    (OTHER_LIBRARIES, 'MiniLMEncoder().export("network")'): "it trains a whole network and writes 2 GB",
    (
        OTHER_LIBRARIES,
        '# pipeline("text-classification", model=name, top_k=None)(texts)',
    ): "`name` is on the hub",
    (OTHER_LIBRARIES, "BERTopic("): "BERTopic and spaCy are not installed for tests",
}
# Of the extra `compat`, and of scikit-learn 1.9: where they are missing the blocks that import them are not run.
MAY_BE_MISSING = {"skrub", "skops", "sklearn.callback"}

# What the text of a page says is there, and what it imports for the reader who knows the other library.
GIVEN = {
    OTHER_LIBRARIES: """
from functools import partial
from operator import itemgetter

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skminilm import MiniLMClassifier, MiniLMEncoder

MiniLMClassifier = partial(MiniLMClassifier, epochs=1)  # a callback saves 85 MB after each
X = [f"{what} {number}" for what in ("parcel", "invoice") for number in range(6)]
y = np.repeat([0, 1], 6)
df = pd.DataFrame({"subject": X, "body": X[::-1], "price": np.arange(12.0)})
parts, classes = [(X[::2], y[::2]), (X[1::2], y[1::2])], [0, 1]
""",
    "docs/scikit-learn.md": """
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skminilm import MiniLMClassifier, MiniLMEncoder

X, y = ["Where is my parcel?", "The card was charged twice."], ["delivery", "billing"]
classifier = MiniLMClassifier(trainable="head").fit(X, y)
pipeline = make_pipeline(MiniLMEncoder(), LogisticRegression()).fit(X, y)
""",
}


def blocks_of(page):
    """The Python of a page: line of the first statement, code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(2)].count("\n") + 1, textwrap.dedent(match[2])) for match in found]


def first_line(code):
    return code.split("\n")[0]


PAGES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))]
PAGES = [page for page in PAGES if blocks_of(page)]


def check_comment(comment, value):
    """Compare a value with what the comment behind its line says of it, where that is one of three forms."""
    if array := re.match(r"array\(.*\)$", comment):
        expected = eval(array[0], {"array": np.array})
        np.testing.assert_array_equal(value, expected)
        assert value.dtype.kind.replace("O", "U") == expected.dtype.kind
    elif shape := re.match(r"shape (\(.*?\))(?:, (float32|float64|int64)\b)?", comment):
        assert value.shape == ast.literal_eval(shape[1])
        assert shape[2] in (None, str(value.dtype))
    elif scores := re.match(r"(\d+) scores\b", comment):
        assert value.shape == (int(scores[1]),)
        assert np.isfinite(value).all()
    else:
        assert not comment.startswith(("array", "shape")), f"not understood: {comment}"


def run_block(code, names, page="a page", line=1):
    """Run statements one by one, so that the value of each is at hand for its comment; errors name the page's line."""
    lines = code.split("\n")
    for statement in ast.parse("\n" * (line - 1) + code).body:
        last = lines[statement.end_lineno - line]
        # Of bytes, as ast counts.
        comment = last.encode()[statement.end_col_offset :].decode().partition("#")[2].strip()
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), page, "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), page, "exec"), names)
            named = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
            value = names[statement.targets[0].id] if named else None
        check_comment(comment, value)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, monkeypatch):
    np.random.seed(0)  # of estimators without random_state
    names = {"__name__": "__main__"}
    exec(GIVEN.get(page, ""), names)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        for line, code in blocks_of(page):
            if (page, first_line(code)) in NOT_RUN:
                continue
            try:
                run_block(code, names, page, line)
            except ModuleNotFoundError as error:
                if error.name not in MAY_BE_MISSING:
                    raise
        monkeypatch.undo()


def test_what_is_not_run_is_still_there():
    there = {(page, first_line(code)) for page in PAGES for _, code in blocks_of(page)}
    assert there >= NOT_RUN.keys()
    assert set(PAGES) >= GIVEN.keys()
    n_marks = sum((ROOT / page).read_text(encoding="utf-8").count("```python") for page in PAGES)
    assert n_marks == sum(len(blocks_of(page)) for page in PAGES)


@pytest.mark.parametrize(
    "code",
    [
        "np.arange(3)  # array([0, 1, 3])",
        "np.arange(3)  # array([0., 1., 2.])",
        "é = np.zeros((4, 3))  # shape (4, 2), float64",
        "é = np.zeros((4, 2))  # shape (4, 2), float32; of zeros",
        "np.zeros(\n    4\n)  # 5 scores: for nothing",
        "np.zeros(4)  # array of zeros",
        "unknown",
    ],
)
def test_wrong_code_is_noticed(code):
    with pytest.raises((AssertionError, NameError)):
        run_block(code, {"np": np})


def test_right_comments_are_let_through():
    run_block(
        "np.array([\"a#b\"])  # array(['a#b'], dtype='<U3')\né = np.zeros((4, 2))  # shape (4, 2), float64; é\n2  # two",
        {"np": np},
        line=7,
    )


@pytest.mark.slow
def test_the_example_of_similarity_prints_what_the_page_shows():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "similarity.py"],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs/choosing-a-model.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^```\n( +different intents .*?)^```$", page, re.MULTILINE | re.DOTALL)
    number = r"-?\d\.\d\d"
    assert re.sub(number, "", done.stdout).split() == re.sub(number, "", table).split()
    found, shown = (np.array(re.findall(number, text), float).reshape(3, 6) for text in (done.stdout, table))
    np.testing.assert_allclose(found[:, :4], shown[:, :4], atol=0.02)
    np.testing.assert_allclose(found[:, 4:], shown[:, 4:], atol=0.1)  # clusters, which rounding changes
