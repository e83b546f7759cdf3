import enum
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from conftest import typed_columns
from scipy.sparse import csr_matrix
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import cross_val_score

from skminilm import MiniLMClassifier, MiniLMEncoder
from skminilm._rows import as_rows
from skminilm._target_validation import (
    check_classes,
    check_labels,
    check_numbers,
    check_row_weights,
    complete_class_weight,
    is_multilabel,
)
from skminilm._validation import check_texts


class Letter(str, enum.Enum):
    """Members are their values, but NumPy and str() give their names."""

    first = "a"
    second = "alpha"


TEXTS = ["one", "zwei", "три"]


class OnlyArray:
    """What NumPy can read, and nothing else is known of."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


class OtherSequence(Sequence):
    """A sequence of a library's own, as a column of `datasets` is."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, index):
        return self.values[index]

    def __len__(self):
        return len(self.values)


COLUMNS = {
    **typed_columns(TEXTS),
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "object array": np.array(TEXTS, dtype=object),
    "fixed-width array": np.array(TEXTS),
    "column array": np.array(TEXTS, dtype=object)[:, None],
    "list of rows": [[text] for text in TEXTS],
    "pandas": pd.Series(TEXTS),
    "pandas object": pd.Series(TEXTS, dtype=object),
    "pandas category": pd.Series(TEXTS, dtype="category"),
    "pandas frame": pd.DataFrame({"text": TEXTS}, index=[5, 6, 7]),
    "pandas index": pd.Index(TEXTS),
    "polars": pl.Series(TEXTS),
    "polars frame": pl.DataFrame({"text": TEXTS}),
    "pyarrow array": pa.array(TEXTS),
    "pyarrow": pa.chunked_array([TEXTS]),
    "pyarrow table": pa.table({"text": TEXTS}),
    "object with __array__": OnlyArray(TEXTS),
    "deque": deque(TEXTS),
    "other sequence": OtherSequence(TEXTS),
}


@pytest.mark.parametrize("container", COLUMNS)
def test_one_column(container):
    X = COLUMNS[container]
    checked = check_texts(X() if callable(X) else X)
    assert (checked.first, checked.second) == (TEXTS, None)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy before 2 has no StringDType")
def test_numpy_string_dtype():
    assert check_texts(np.array(TEXTS, dtype=np.dtypes.StringDType())).first == TEXTS


@pytest.mark.parametrize(
    "X",
    [
        [("a", "b"), ("c", "d")],
        np.array([["a", "b"], ["c", "d"]]),
        pd.DataFrame({"x": ["a", "c"], "y": ["b", "d"]}),
        pl.DataFrame({"x": ["a", "c"], "y": ["b", "d"]}),
        pa.table({"x": ["a", "c"], "y": ["b", "d"]}),
        pa.record_batch({"x": ["a", "c"], "y": ["b", "d"]}),
    ],
    ids=lambda X: type(X).__name__,
)
def test_two_columns_are_pairs(X):
    checked = check_texts(X)
    assert (checked.first, checked.second) == (["a", "c"], ["b", "d"])
    assert checked.names == (("x", "y") if hasattr(X, "columns") else None)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("a text", TypeError, r"X is a bare str: 'a text'.*put it in a list"),
        (b"bytes", TypeError, "X is a bare bytes"),
        (3, TypeError, "X is a int: 3"),
        ({"a": 1}, TypeError, "X is a dict"),
        ([], ValueError, "X is empty"),
        (pd.Series([], dtype=str), ValueError, "X is empty"),
        (["a", None], ValueError, "missing value: row 1 is None"),
        (["a", float("nan")], ValueError, "missing value: row 1 is nan"),
        (pd.Series(["a", pd.NA], dtype="string"), ValueError, "missing value: row 1"),
        (pl.Series(["a", None]), ValueError, "missing value: row 1 is None"),
        (["a", 5], TypeError, r"row 1 is 5 \(int\).*astype\(str\)"),
        (["a", b"b"], TypeError, r"row 1 is b'b' \(bytes\)"),
        (np.array([1.5, 2.5]), TypeError, r"row 0 is 1\.5 \(float\).*ColumnTransformer"),
        ([("a", "b"), ("c",)], ValueError, r"X is ragged: row 0 has 2 column\(s\), row 1 is \('c',\)"),
        ([("a",), "b"], ValueError, "X is ragged: .* row 1 is 'b'"),
        ([("a", "b", "c")], ValueError, r"X has 3 columns.*df\['subject'\].*ColumnTransformer"),
        ((["a", "b", "c"], ["d", "e", "f"]), ValueError, r"X has 3 columns.*two rows.*list\(zip\(\*X\)\)"),
        (np.array([["a", "b", "c"]] * 2), ValueError, r"X has 3 columns.*two rows.*list\(zip\(\*X\)\)"),
        ((pd.Series(["a", "b", "c"]), pd.Series(["d", "e", "f"])), ValueError, r"list\(zip\(\*X\)\)"),
        ((pl.Series(["a", "b", "c"]), pl.Series(["d", "e", "f"])), ValueError, r"list\(zip\(\*X\)\)"),
        ([pd.Series(["a", "b"]), "c"], ValueError, "X is ragged: .* row 1 is 'c'"),
        (pd.DataFrame({"x": ["a"], "y": ["b"], "z": ["c"]}), ValueError, "X has 3 columns"),
        (pd.DataFrame([["a", "b"]], columns=["x", "x"]), ValueError, "two columns of one name"),
        (pa.record_batch({"x": ["a"], "y": ["b"], "z": ["c"]}), ValueError, "X has 3 columns"),
        (pa.record_batch({"x": ["a", None]}), ValueError, "missing value: row 1 is None"),
        (np.zeros((2, 2, 2)), ValueError, "X has 3 dimensions"),
        ([("a", "b"), ("c", None)], ValueError, "row 1, second column is None"),
        (["ok", "bad \ud800 half"], ValueError, r"row 1 holds a lone surrogate at position 4.*surrogatepass"),
        (np.array("scalar"), ValueError, "X has 0 dimensions"),
    ],
)
def test_bad_x_names_row_value_and_remedy(X, error, message):
    with pytest.raises(error, match=message):
        check_texts(X)


def test_rows_of_a_frame_are_pairs():
    frame = pd.DataFrame({"question": ["a", "b"], "context": ["c", "d"]})
    texts = check_texts([row for _, row in frame.iterrows()])
    assert (texts.first, texts.second) == (["a", "b"], ["c", "d"])


def test_missing_as_empty():
    X = ["a", None, float("nan"), pd.NA]
    assert check_texts(X, missing="empty").first == ["a", "", "", ""]


def test_inputs_are_not_changed():
    array = np.array(TEXTS, dtype=object)
    array.setflags(write=False)
    assert check_texts(array).first == TEXTS


LABELS = ["b", "a", "b"]
COLUMNS_OF_LABELS = {
    **typed_columns(LABELS),
    "polars": pl.Series(LABELS),
    "pyarrow table": pa.table({"y": LABELS}),
    "pandas frame": pd.DataFrame({"y": LABELS}),
    "polars frame": pl.DataFrame({"y": LABELS}),
    "object with __array__": OnlyArray(LABELS),
}


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
@pytest.mark.parametrize("container", COLUMNS_OF_LABELS)
def test_labels_of_every_type(container):
    found, codes = check_classes(COLUMNS_OF_LABELS[container], 3)
    assert found.tolist() == ["a", "b"]
    assert found.dtype.kind == "U"
    assert codes.tolist() == [1, 0, 1]


@pytest.mark.parametrize("make_frame", [pd.DataFrame, pl.DataFrame, pa.table, pa.record_batch])
def test_a_frame_of_labels_warns_like_a_column_vector_and_keeps_numbers(make_frame):
    with pytest.warns(DataConversionWarning, match=r"its shape is \(3, 1\)"):
        found, _ = check_classes(make_frame({"y": [3, 1, 3]}), 3)
    assert found.tolist() == [1, 3]
    assert found.dtype.kind == "i"
    with pytest.raises(ValueError, match=r"y has the shape \(3, 2\)"):
        check_classes(make_frame({"a": LABELS, "b": LABELS}), 3)
    assert not is_multilabel(make_frame({"y": [1, 0, 1]}))
    assert is_multilabel(make_frame({"a": [1, 0, 1], "b": [0, 0, 1]}))
    assert check_labels(make_frame({"a": [1, 0, 1], "b": [0, 0, 1]}), 3).tolist() == [[1, 0], [0, 0], [1, 1]]
    assert check_numbers(make_frame({"y": [1.5, 2, 3]}), 3).tolist() == [[1.5], [2], [3]]


def test_what_numpy_alone_can_read_is_numbers_and_labels_too():
    assert check_numbers(OnlyArray([1, 2, 3]), 3).tolist() == [1, 2, 3]
    assert is_multilabel(OnlyArray([[0, 1], [1, 1]]))
    assert check_labels(OnlyArray([[0, 1], [1, 1]]), 2).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("values", [[["a", "b"], ["c"], []], [{"x": 1}, {"x": 2}, {"x": 3}]], ids=str)
def test_rows_of_nested_values(values):
    for column in (pa.array(values), pa.chunked_array([values]), pl.Series(values)):
        assert as_rows(column, "y") == values
    with pytest.raises(TypeError, match=r"y has the shape \(3, 1\)"):
        as_rows(pa.record_batch({"y": pa.array(values)}), "y")


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy before 2 has no StringDType")
def test_labels_of_numpy_string_dtype():
    found, codes = check_classes(np.array(LABELS, dtype=np.dtypes.StringDType()), 3)
    assert (found.tolist(), codes.tolist()) == (["a", "b"], [1, 0, 1])


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([True, False, True], [False, True]),
        ([3, 1, 3], [1, 3]),
        (pd.Series(["b", "a", "b"]), ["a", "b"]),
        (pd.Series(["b", "a", "b"], dtype="category"), ["a", "b"]),
        (pl.Series(["b", "a", "b"]), ["a", "b"]),
        (pa.array(["b", "a", "b"]), ["a", "b"]),
        (np.array([["b"], ["a"], ["b"]], dtype=object), ["a", "b"]),
        ([1.0, 0, 1], [0.0, 1.0]),
        (("b", "a", "b"), ["a", "b"]),
        ([Letter.second, Letter.first, Letter.second], ["a", "alpha"]),
        ([np.array("b"), np.array("a"), np.array("b")], ["a", "b"]),
        (csr_matrix([[1], [0], [1]]), [0, 1]),
        (list(pa.array(["b", "a", "b"])), ["a", "b"]),
        (torch.tensor([3, 1, 3]), [1, 3]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_classes(y, classes):
    found, codes = check_classes(y, 3)
    assert found.tolist() == classes
    assert codes.tolist() == [1, 0, 1]
    assert codes.dtype == np.int64
    assert not is_multilabel(y)


@pytest.mark.parametrize("make", [np.array, pd.Series])
@pytest.mark.parametrize(("y", "dtype"), [([3, 1, 3], int), ([True, False, True], bool)], ids=str)
def test_what_scikit_learn_does_not_stratify_is_warned_of(make, y, dtype, recwarn):
    with pytest.warns(UserWarning, match=rf"does not stratify it.* Use y\.astype\({dtype.__name__}\)"):
        check_classes(make(y, dtype=object), 3)
    recwarn.clear()
    check_classes(make(y, dtype=object).astype(dtype), 3)
    check_classes(y, 3)
    check_classes(make(["a", "b", "a"], dtype=object), 3)
    assert not recwarn.list


NESTED = [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    "y",
    [
        NESTED,
        pd.Series(NESTED),
        pl.Series(NESTED),
        pl.Series(NESTED, dtype=pl.Array(pl.Int64, 3)),
        pa.array(NESTED),
        np.array([*NESTED, None], dtype=object)[:-1],
        torch.tensor(NESTED),
        deque(NESTED),
        OtherSequence(NESTED),
    ],
    ids=lambda y: type(y).__module__,
)
def test_a_column_of_rows_is_a_matrix(y):
    assert is_multilabel(y)
    assert check_labels(y, 2).tolist() == NESTED
    assert check_numbers(y, 2).tolist() == NESTED


def test_lists_of_one_label_each_are_one_column():
    assert not is_multilabel([["a"], ["b"], ["a"]])
    assert not is_multilabel([np.array(["a"]), np.array(["b"])])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is None"),
        (["a", "b"], "y has 2 rows, expected 3: y has none for row 2"),
        (["a", "a", "a"], "y has one class only, 'a'"),
        (["a", None, "b"], "missing label: row 1 is None"),
        ([1.0, float("nan"), 2.0], "missing label: row 1 is nan"),
        ([0.5, 1.5, 2.5], "y is continuous"),
        (["a", 1, "b"], "y mixes labels of the types number, str"),
        ("bab", "y is a str: 'bab'"),
        pytest.param({"b", "a", "c"}, "y is a set", id="set"),  # its str differs from process to process
        (3, "y is a int: 3"),
        ([["a"], ["b", "c"], ["d"]], "y is ragged.*MultiLabelBinarizer"),
        pytest.param([{"a"}, {"b", "c"}, {"d"}], "y holds sets of labels.*MultiLabelBinarizer", id="sets"),
        ([2**63 + 5, -1, 1], "y holds ints that 64 bits do not keep: convert them to str"),
        (pd.Series([["a"], ["b", "c"], ["d"]]), "y is ragged.*MultiLabelBinarizer"),
        (
            pd.Series(pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-01"])),
            "of the type Timestamp .* to str",
        ),
        ([2**70, 1, 2**70], "of the type int that no array keeps"),
        (["a", "\ud800", "b"], "y has a label that is not valid Unicode"),
        (["a", "a\0", "b"], r"y has a label that ends in NUL, which arrays do not keep: row 1 is 'a\\x00'"),
        ([b"a", b"a\0", b"b"], r"ends in NUL, which arrays do not keep: row 1 is b'a\\x00'"),
        (np.array(["2026-01-01", "2026-01-02", "2026-01-01"], "M8[D]"), "y holds dates or times"),
        (np.zeros((3, 2)), r"y has the shape \(3, 2\)"),
    ],
    ids=str,
)
def test_bad_y(y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_classes(y, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], r"shape \(2,\), expected \(3,\)"),
        ([1, -1, 1], r"row 1 is -1\.0"),
        ([1, float("nan"), 1], "row 1 is nan"),
        ([0, 0, 0], "zero in every row"),
        (np.array([1, 1j, 1]), "it is complex"),
        (np.ma.array([1.0, 5.0, 1.0], mask=[False, True, False]), "row 1 is nan"),
    ],
)
def test_bad_sample_weight(weights, message):
    with pytest.raises(ValueError, match=message):
        check_row_weights(weights, 3)


def test_lists_of_names_are_told_how_they_become_columns():
    with pytest.raises(ValueError, match="MultiLabelBinarizer"):
        check_labels([["a", "b"], ["a"]], 2)


def test_the_place_of_a_wrong_indicator_is_named():
    with pytest.raises(ValueError, match="row 2, column 0 is 5"):
        check_labels([[0, 1], [1, 0], [5, 1]], 3)


def test_scalars_of_pyarrow_are_texts():
    assert check_texts(list(pa.array(["ein Text", "两个"]))).first == ["ein Text", "两个"]
    with pytest.raises(ValueError, match="row 1 is None"):
        check_texts(list(pa.array(["ein Text", None])))


@pytest.mark.parametrize("weight", [1, 0.5, np.float32(3)])
def test_one_sample_weight_for_all_rows(weight):
    np.testing.assert_array_equal(check_row_weights(weight, 3), [1, 1, 1])


def test_columns_some_of_whose_names_are_str_are_refused():
    with pytest.raises(TypeError, match=r"columns \['a', 1\]: feature names are only supported if all"):
        check_texts(pd.DataFrame({"a": ["x"], 1: ["y"]}))
    assert check_texts(pd.DataFrame({0: ["x"], 1: ["y"]})).names is None


@pytest.mark.parametrize("make_frame", [pd.DataFrame, pl.DataFrame, pa.table, pa.record_batch])
def test_sample_weight_in_columns_of_frames(make_frame):
    weights = make_frame({"w": [1.0, 2.0, 4.0]})["w"]
    np.testing.assert_array_equal(check_row_weights(weights, 3), [0.25, 0.5, 1])


def test_class_weights_may_name_absent_classes_but_not_misspell():
    classes = np.array(["a", "b"])
    assert complete_class_weight({"b": 3.0}, classes).tolist() == [1.0, 3.0]
    assert complete_class_weight({"a": 2.0, "b": 3.0, "absent": 9.0}, classes).tolist() == [2.0, 3.0]
    assert complete_class_weight({"a": Fraction(1, 2)}, classes).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"names the class 'A', which y does not hold, and leaves out 'a'"):
        complete_class_weight({"A": 2.0}, classes)


@pytest.mark.parametrize(
    "container",
    [
        pd.Series,
        lambda pairs: pd.Series(pairs, index=range(9, 9 + len(pairs))),
        lambda pairs: pl.Series([list(pair) for pair in pairs]),
        lambda pairs: np.array([*pairs, None], dtype=object)[:-1],
    ],
    ids=["pandas", "pandas with an index", "polars", "array of tuples"],
)
def test_pairs_in_one_column(container):
    found = check_texts(container([("a", "b"), ("c", "d")]))
    assert (found.first, found.second) == (["a", "c"], ["b", "d"])


def test_dicts_are_told_to_become_columns():
    with pytest.raises(
        TypeError, match=r"\[row\['text'\] for row in X\], or give pairs of them as two columns"
    ):
        check_texts([{"premise": "a", "hypothesis": "b"}])


def test_arrays_of_one_text_each_are_named():
    with pytest.raises(TypeError, match="row 0"):
        check_texts([np.array("a"), np.array("b")])


def test_bytes_are_to_be_decoded():
    """Their str() is another text: "b'...'"."""
    for X in (["a", b"Gr\xc3\xbc\xc3\x9fe"], b"Gr\xc3\xbc\xc3\x9fe"):
        with pytest.raises(TypeError, match=r"\.decode\('utf-8'\)"):
            MiniLMEncoder().transform(X)


def test_a_warning_names_the_line_of_the_user_behind_cross_validation():
    texts, y = [f"some words and {number} more" for number in range(12)], [0, 1] * 6
    with pytest.warns(UserWarning, match="were cut off there") as caught:
        cross_val_score(MiniLMClassifier(trainable="head", max_length=5), texts, y, cv=2)
    assert {warning.filename for warning in caught} == {__file__}
