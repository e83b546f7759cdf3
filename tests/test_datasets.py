import unicodedata
from collections import Counter

import numpy as np
import pytest

from skminilm.datasets import load_support_requests

LANGUAGES = ["en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh", "pt"]


def test_shape(requests):
    assert len(requests.data) == len(set(requests.data)) == 1024
    assert requests.target.shape == requests.languages.shape == requests.groups.shape == (1024,)
    assert len(requests.target_names) == 8
    counts = Counter(zip(requests.languages.tolist(), requests.target.tolist(), strict=True))
    assert set(counts.values()) == {8}
    assert {language for language, _ in counts} == set(LANGUAGES)
    assert "1,024" in requests.DESCR


def test_items_are_parallel(requests):
    for group in range(64):
        rows = requests.groups == group
        assert set(requests.languages[rows]) == set(LANGUAGES)
        assert len(set(requests.target[rows])) == 1


def test_texts_are_clean(requests):
    for text in requests.data:
        assert text == text.strip()
        assert unicodedata.normalize("NFC", text) == text
        assert not any(unicodedata.category(char) in ("Cc", "Co", "Cn") for char in text)


SCRIPTS = {
    "ar": "ARABIC", "bg": "CYRILLIC", "el": "GREEK", "hi": "DEVANAGARI", "ru": "CYRILLIC",
    "th": "THAI", "ur": "ARABIC", "zh": "CJK",
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_is_in_its_script(requests, language):
    texts = [t for t, lang in zip(requests.data, requests.languages, strict=True) if lang == language]
    letters = [char for text in texts for char in text if char.isalpha()]
    script = SCRIPTS.get(language, "LATIN")
    share = np.mean([unicodedata.name(char).startswith(script) for char in letters])
    assert share > 0.9


def test_no_text_is_a_template_with_a_slot_changed(requests):
    """No two texts of a language share more than half of their word pairs."""
    for language in set(LANGUAGES) - {"th", "zh"}:  # written without spaces
        texts = [t for t, lang in zip(requests.data, requests.languages, strict=True) if lang == language]
        pairs = [set(zip(t.split(), t.split()[1:], strict=False)) for t in texts]
        for i, first in enumerate(pairs):
            for second in pairs[:i]:
                assert len(first & second) <= 0.5 * min(len(first), len(second)), (first, second)


def test_return_x_y_and_frame(requests):
    X, y = load_support_requests(return_X_y=True)
    assert requests.data == X
    np.testing.assert_array_equal(y, requests.target)
    bunch = load_support_requests(as_frame=True)
    assert bunch.frame.columns.tolist() == ["text", "target", "intent", "language", "group"]
    assert bunch.data.tolist() == X
    assert (bunch.frame.intent == np.array(requests.target_names)[y]).all()
    X, y = load_support_requests(return_X_y=True, as_frame=True)
    assert (X.name, y.name) == ("text", "target")


def test_columns_of_the_frame_are_those_of_the_bunch():
    bunch = load_support_requests(as_frame=True)
    assert bunch.frame.group.tolist() == bunch.groups.tolist()
    assert bunch.frame.language.tolist() == bunch.languages.tolist()
    assert bunch.frame.text.tolist() == bunch.data.tolist()
    assert bunch.frame.target.tolist() == bunch.target.tolist()
