"""The bundled weights as transformers and sentence-transformers run them: what this package is compared with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import BertConfig, BertModel

from skminilm.checkpoints import load_checkpoint
from skminilm.checkpoints.q4 import dequantize_q4

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 512


def load_reference() -> BertModel:
    """Return the dequantised bundled checkpoint as a BertModel in float32."""
    checkpoint = load_checkpoint("bundled")
    weights = dict(checkpoint.read_weights())
    table = "embeddings.word_embeddings.weight"
    weights[table] = dequantize_q4(weights[table])
    model = BertModel(BertConfig(**asdict(checkpoint.config)), add_pooling_layer=False).eval()
    keys = model.load_state_dict(weights, strict=False)
    if keys.unexpected_keys or any("position_ids" not in key for key in keys.missing_keys):
        raise RuntimeError(f"the weights do not fit BertModel: {keys}")
    return model


def reference_tokenizer() -> PreTrainedTokenizerBase:
    """Return XLM-R's tokenizer as transformers wraps it, on the ``tokenizers`` library."""
    import tokenizers
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2
    from tokenizers import normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    processor = load_checkpoint("bundled").tokenizer._processor
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, len(processor))]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.Unigram([*special, *pieces, ("<mask>", 0.0)], unk_id=3, byte_fallback=False)
    )
    rules = sentencepiece_model_pb2.ModelProto()
    rules.ParseFromString(SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    tokenizer.normalizer = normalizers.Precompiled(rules.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_sentence_transformer(
    folder: Path,
    network: Path,
    *,
    max_length: int,
    pooling: str = "mean",
    normalize: bool = True,
    dense: int | None = None,
    **options,
) -> None:
    """Write a network that transformers saved as a sentence-transformers folder.

    Parameters
    ----------
    folder : Path
        To write to.
    network : Path
        Folder of the network and its tokenizer.
    max_length : int
        Tokens per text may have.
    pooling : str
    normalize : bool
        Scale vectors to norm 1.
    dense : int or None
        Outputs of a dense layer after the pooling.
    **options
        For ``SentenceTransformer``.
    """
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer import modules
    except ImportError:  # before sentence-transformers 6
        from sentence_transformers import models as modules

    transformer = modules.Transformer(str(network), max_seq_length=max_length)
    hidden_size = transformer.auto_model.config.hidden_size
    parts = [transformer, modules.Pooling(hidden_size, pooling)]
    if dense:
        parts.append(modules.Dense(hidden_size, dense))
    if normalize:
        parts.append(modules.Normalize())
    SentenceTransformer(modules=parts, device="cpu", **options).save(str(folder))


def training_arguments(folder: str, *, bf16: bool, **options):
    """Return the Trainer's arguments for a quiet run that keeps nothing, on a GPU where there is one."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **options,
    )


def write_reference(folder: Path) -> Path:
    """Write the bundled checkpoint as a sentence-transformers folder (mean pooling, unit length)."""
    folder, network = Path(folder), Path(folder) / "network"
    if not (folder / "modules.json").is_file():
        load_reference().save_pretrained(network)
        reference_tokenizer().save_pretrained(network)
        save_sentence_transformer(folder, network, max_length=MAX_LENGTH)
    return folder


def load_sentence_transformer(folder: Path, device: str = "cpu") -> SentenceTransformer:
    """Return the model that :func:`write_reference` wrote."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device=device, local_files_only=True)


def pooled_vectors(model: BertModel, texts: list[str], pooling: str = "mean") -> np.ndarray:
    """Return the pooled last hidden states of each text, computed one by one, without prompt."""
    tokenizer = load_checkpoint("bundled").tokenizer
    vectors = []
    for text in texts:
        ids = torch.from_numpy(tokenizer.encode([text], max_length=MAX_LENGTH).input_ids).long()[None]
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "max": hidden.max(dim=0).values}[pooling]
        vectors.append(pooled.numpy())
    return np.array(vectors)
