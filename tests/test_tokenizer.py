import json
from importlib.resources import files

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skminilm.checkpoints import EncodingSettings, load_checkpoint, tokenize
from skminilm.checkpoints.sentencepiece_tokenizer import SentencePieceTokenizer, build_model_proto
from skminilm.checkpoints.token_batch import check_prompt
from skminilm.checkpoints.token_limits import assemble
from skminilm.checkpoints.tokenizer import _adds_tokens, read_tokenizer, verify_golden_ids, write_tokenizer

GOLDEN = json.loads(files("skminilm.checkpoints").joinpath("golden_token_ids.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return load_checkpoint("bundled").tokenizer


def ids(tokenizer, text, second=None, max_length=512):
    second = None if second is None else [second]
    return tokenizer.encode([text], second, max_length=max_length).input_ids.tolist()


@pytest.mark.parametrize("probe", GOLDEN["single"], ids=lambda probe: ascii(probe["text"])[:30])
def test_golden_texts(tokenizer, probe):
    assert ids(tokenizer, probe["text"]) == probe["ids"]


@pytest.mark.parametrize("probe", GOLDEN["pair"], ids=lambda probe: probe["a"] or "empty")
def test_golden_pairs(tokenizer, probe):
    assert ids(tokenizer, probe["a"], probe["b"]) == probe["ids"]


def test_the_tokenizer_that_is_written_for_transformers(tokenizer, requests, tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, load_checkpoint("bundled"))
    (tmp_path / "sentencepiece.bpe.model").unlink()  # transformers reads it only where protobuf is there
    written = AutoTokenizer.from_pretrained(tmp_path)
    for probe in GOLDEN["single"]:
        assert written(probe["text"])["input_ids"] == probe["ids"]
    for probe in GOLDEN["pair"]:
        assert written(probe["a"], probe["b"])["input_ids"] == probe["ids"]
    batch = tokenizer.encode(requests.data, max_length=512)
    assert np.concatenate(written(requests.data)["input_ids"]).tolist() == batch.input_ids.tolist()
    assert written.mask_token_id == 250_001
    assert (
        read_tokenizer(tmp_path).encode(requests.data, max_length=512).input_ids.tolist()
        == batch.input_ids.tolist()
    )


def test_there_are_14_probes_and_2_pairs():
    assert (len(GOLDEN["single"]), len(GOLDEN["pair"])) == (14, 2)


def test_a_wrong_tokenizer_is_refused_with_the_first_differing_probe():
    proto = build_model_proto([b"\xe2\x96\x81query", b":", b"\xe2\x96\x81how"], [-1.0, -2.0, -3.0])
    wrong = SentencePieceTokenizer(proto)
    with pytest.raises(
        ValueError, match=r"of here is not the one .* 'query: how much protein .* expected \[0, 41"
    ):
        verify_golden_ids(wrong, "here")


def test_a_batch_gives_the_ids_of_its_texts_one_by_one(tokenizer, requests):
    batch = tokenizer.encode(requests.data, max_length=512)
    one_by_one = [ids(tokenizer, text) for text in requests.data]
    assert np.split(batch.input_ids, batch.offsets[1:-1])[100].tolist() == one_by_one[100]
    assert batch.input_ids.tolist() == [token for text in one_by_one for token in text]


def test_control_tokens_and_trailing_space_are_text(tokenizer):
    # As SentencePiece has it, which the network was trained with.
    assert 2 not in ids(tokenizer, "a </s> b")[1:-1]
    assert ids(tokenizer, "word  ") == ids(tokenizer, "word")
    assert ids(tokenizer, " \t\n ") == ids(tokenizer, "") == [0, 2]


@pytest.mark.parametrize("char", ["\u061c", "\u32ff", "\U0001e030", "\U0001fbf0", "\ua7f2"])
def test_code_points_that_xlmr_never_saw_are_unknown(tokenizer, char):
    assert 3 in ids(tokenizer, f"a{char}b")


def test_zero_width_joiner_is_a_space_as_in_training(tokenizer):
    assert ids(tokenizer, "a\u200db") == ids(tokenizer, "a b")


def test_truncation_keeps_the_start_and_the_end_token(tokenizer):
    full = ids(tokenizer, "one two three four five six seven")
    cut = tokenizer.encode(["one two three four five six seven"], max_length=5)
    assert cut.input_ids.tolist() == [*full[:4], 2]
    assert cut.full_lengths.tolist() == [len(full)]


def test_pairs_lose_the_tokens_of_the_longer_text_first(tokenizer):
    long, short = "one two three four five six seven eight", "nine ten"
    first, second = ids(tokenizer, long)[1:-1], ids(tokenizer, short)[1:-1]
    cut = ids(tokenizer, long, short, max_length=4 + 4 + len(second))
    assert cut == [0, *first[:4], 2, 2, *second, 2]
    assert ids(tokenizer, short, long, max_length=4 + 4 + len(second)) == [0, *second, 2, 2, *first[:4], 2]


@given(a=st.text(max_size=60), b=st.text(max_size=60), limit=st.integers(6, 40))
@settings(max_examples=200, deadline=None)
def test_pairs_fit_and_stay_balanced(tokenizer, a, b, limit):
    a, b = (text.encode("utf-8", "replace").decode() for text in (a, b))
    batch = tokenizer.encode([a], [b], max_length=limit)
    assert len(batch.input_ids) == batch.lengths[0] == min(limit, batch.full_lengths[0])
    n_a, n_b = (len(ids(tokenizer, text)) - 2 for text in (a, b))
    middle = next(i for i in range(1, limit) if batch.input_ids[i] == 2)
    kept_a, kept_b = middle - 1, len(batch.input_ids) - middle - 3
    if kept_a < n_a and kept_b < n_b:
        assert abs(kept_a - kept_b) <= 1
    elif kept_a < n_a:
        assert kept_a >= kept_b - 1
    elif kept_b < n_b:
        assert kept_b >= kept_a - 1


@given(st.lists(st.text(max_size=80), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_text_has_ids_of_the_vocabulary(tokenizer, texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    batch = tokenizer.encode(texts, max_length=16)
    assert batch.lengths.sum() == len(batch.input_ids)
    assert ((batch.input_ids >= 0) & (batch.input_ids < 250_002)).all()
    assert (batch.input_ids[batch.offsets[:-1]] == 0).all()
    assert (batch.input_ids[batch.offsets[1:] - 1] == 2).all()


def test_too_small_a_limit_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_length=2 leaves no room"):
        tokenizer.encode(["a"], max_length=2)


def test_tokenizer_json_with_xlmr_pieces_runs_on_sentencepiece(tokenizer, requests, tmp_path):
    """A ``tokenizer.json`` alone is rebuilt, its normaliser included, and passes the golden probes."""
    import base64
    import struct

    import sentencepiece

    from skminilm.checkpoints import bundled

    path = bundled.find_bundled_file()
    blob = path.read_bytes()
    n_pieces = struct.unpack_from("<i", blob, 44)[0]
    start = 44 + 20 + 8
    offsets = np.frombuffer(blob, "<u4", n_pieces + 1, start)
    scores = np.frombuffer(blob, "<f4", n_pieces, start + 4 * (n_pieces + 1))
    text = blob[start + 4 * (2 * n_pieces + 1) :]
    vocabulary = [
        (text[a:b].decode(), float(s)) for a, b, s in zip(offsets[:-1], offsets[1:], scores, strict=True)
    ]
    proto = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto()
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 3))
    content = json.loads(model.to_str())
    content["normalizer"] = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(_charsmap(proto)).decode(),
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    rebuilt = read_tokenizer(tmp_path)
    assert isinstance(rebuilt, SentencePieceTokenizer)
    plain = [text for text in requests.data if "\u200d" not in text]
    assert np.array_equal(
        rebuilt.encode(plain, max_length=512).input_ids, tokenizer.encode(plain, max_length=512).input_ids
    )


def test_a_vocabulary_larger_than_xlmrs_keeps_its_own_rules(tmp_path, monkeypatch):
    monkeypatch.setattr("skminilm.checkpoints.sentencepiece_tokenizer.XLMR_VOCABULARY", 12)
    pieces = ["▁", "a", "令", "和", "क", "्", "ष", "क्\u200dष", *(f"x{number}" for number in range(12))]
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0) for piece in pieces]
    own = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 3))
    own.normalizer = tokenizers.normalizers.NFKC()
    own.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    own.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    for text in ("क्\u200dष", "㋿", "a"):
        assert ids(read_tokenizer(tmp_path), text) == own.encode(text).ids


def _charsmap(proto):
    """The field precompiled_charsmap of the field normalizer_spec of a model proto."""

    def fields(data):
        position = 0
        while position < len(data):
            key, position = _varint(data, position)
            if key & 7 == 2:
                size, position = _varint(data, position)
                yield key >> 3, data[position : position + size]
                position += size
            elif key & 7 == 0:
                _, position = _varint(data, position)
            else:
                position += 4 if key & 7 == 5 else 8

    normalizer = next(value for number, value in fields(proto) if number == 3)
    return next(value for number, value in fields(normalizer) if number == 2)


def _varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"No tokenizer in .* expected sentencepiece\.bpe\.model"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "tokenizer.json"])
def test_a_damaged_tokenizer_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00damaged")
    with pytest.raises(OSError, match=f"{name}.*Download it again"):
        read_tokenizer(tmp_path)


PROMPT = "Instruct: find the topic of this text. Query: "


@pytest.mark.parametrize("long_text", ["truncate", "head_tail"])
def test_no_text_is_too_long_for_its_prompt(long_text):
    tokenizer = load_checkpoint("bundled").tokenizer
    text = " ".join(["one two three four five six seven"] * 20)
    plain = tokenizer.encode([PROMPT.strip()], max_length=100).input_ids[:-1]
    for second in (None, [text], ["seven"]):
        settings = EncodingSettings("mean", True, PROMPT, 24, long_text)
        batch = tokenize(tokenizer, [text], second, settings)
        assert len(batch.input_ids) <= 24
        np.testing.assert_array_equal(batch.input_ids[: len(plain)], plain)
        # Something of the text follows.
        assert batch.input_ids[len(plain)] != tokenizer.pair_template[2][-1]


def test_a_prompt_that_leaves_no_room_in_pairs():
    tokenizer = load_checkpoint("bundled").tokenizer
    n_tokens = tokenizer.encode([PROMPT], max_length=100).full_lengths[0]
    settings = EncodingSettings("mean", True, PROMPT, int(n_tokens) + 1)
    tokenize(tokenizer, ["a"], None, settings)
    with pytest.raises(ValueError, match="leaves no room for text behind the prompt"):
        tokenize(tokenizer, ["a"], ["b"], settings)


def test_a_prompt_leaves_room_for_one_token():
    with pytest.raises(ValueError, match="max_length=5 leaves no room for text behind the prompt 'x'"):
        check_prompt("x", 5, lambda text: 5)
    assert check_prompt("x", 6, lambda text: 5) == 5


def test_pairs_of_equal_length_lose_the_odd_token_of_the_second():
    batch = assemble([[1] * 5], [[2] * 5], [0], [8, 8], [9], 11, "truncate")  # room for 7
    assert batch.input_ids.tolist() == [0, 1, 1, 1, 1, 8, 8, 2, 2, 2, 9]


def test_the_head_is_a_quarter_of_what_the_prompt_leaves():
    ids = list(range(10, 40))
    batch = assemble([ids], None, [0], [], [2], 14, "head_tail", n_kept=4)  # 12 tokens, 8 behind the prompt
    assert batch.input_ids.tolist() == [0, *ids[:4], *ids[4:6], *ids[-6:], 2]


def test_added_tokens_in_a_file_of_their_own_are_seen(tmp_path):
    assert not _adds_tokens(tmp_path, {})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<mask>": 250001}))
    assert not _adds_tokens(tmp_path, {})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<mask>": 250001, "<user>": 250002}))
    assert _adds_tokens(tmp_path, {})


def test_added_tokens_in_the_settings_are_seen(tmp_path):
    tokens = {"250001": {"content": "<mask>"}, "250002": {"content": "<user>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    assert _adds_tokens(tmp_path, {})


def test_threads_are_those_that_the_process_may_use(monkeypatch):
    tokenizer = load_checkpoint("bundled").tokenizer
    asked = []

    class Processor:
        def encode(self, texts, out_type, num_threads):
            asked.append(num_threads)
            return [np.array([5], np.int32) for _ in texts]

    monkeypatch.setattr(tokenizer, "_processor", Processor())
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 16):
            torch.set_num_threads(n_threads)
            tokenizer.encode(["a"] * 200, max_length=8)
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 2, 4]  # one for every 64 texts, and one
