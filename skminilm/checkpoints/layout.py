"""What the configuration files of a folder say of its modules, as transformers and sentence-transformers write them."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import XLMR_TYPE, EncodingSettings, read_json

ESTIMATOR_FILE = "estimator.json"  # of a folder that holds a saved estimator
POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_ORDER_KNOWN = ["Transformer", "Pooling", "Normalize"]
_TRANSFORMER_SETTINGS = [  # the first one there counts
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
_ARGUMENTS = (
    "model_args",
    "tokenizer_args",
    "config_args",
    "model_kwargs",
    "processor_kwargs",
    "config_kwargs",
)
_WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")


def has_adapter(transformer: Path) -> bool:
    """Tell whether an adapter (PEFT) lies beside the weights of a network, or instead of them."""
    return (transformer / "adapter_config.json").is_file()


def kind_of(module: dict) -> str:
    """Return the name of a module's class, with its module where that is not sentence-transformers."""
    full_name = str(module["type"])
    return full_name.rsplit(".", 1)[-1] if full_name.startswith("sentence_transformers.") else full_name


def read_modules(folder: Path) -> list[dict]:
    """Return the modules of a sentence-transformers folder; none of another.

    Raises
    ------
    OSError
        ``modules.json`` lists something else, or a folder outside.
    """
    modules = read_json(folder / "modules.json") or []
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and {"type", "path"} <= m.keys() and isinstance(m["path"], str) for m in modules
    ):
        raise OSError(f"{folder / 'modules.json'} does not list modules with type and path.")
    for module in modules:
        path = Path(module["path"])
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
        if path.is_absolute() or ".." in path.parts or not inside:
            raise OSError(
                f"{folder / 'modules.json'} names {module['path']!r}: the path of a module is relative, without '..' or a "
                "link to elsewhere."
            )
    return modules


def transformer_folder(folder: Path, modules: list[dict]) -> Path:
    """Return where the network's own files lie."""
    return folder / next((module["path"] for module in modules if kind_of(module) == "Transformer"), "")


def find_transformer(folder: Path) -> Path:
    """Return where the network's own files lie in a folder of which nothing was read yet."""
    return transformer_folder(folder, read_modules(folder))


class Layout:
    """The configuration files of a folder.

    Parameters
    ----------
    folder : Path
    modules : list of dict
        Of :func:`read_modules`.
    transformer : Path
        Where the network's own files lie.
    config : dict
        Its ``config.json``.
    """

    def __init__(self, folder: Path, modules: list[dict], transformer: Path, config: dict) -> None:
        self._config = config
        self._modules = [
            (kind_of(module), module["type"], read_json(folder / module["path"] / "config.json") or {})
            for module in modules
        ]
        # sentence-transformers reads its own settings where it finds its modules.
        self._settings = _first_json(transformer, _TRANSFORMER_SETTINGS) if modules else {}
        self._vectors = (read_json(folder / "config_sentence_transformers.json") or {}) if modules else {}
        self._tokenizer = read_json(transformer / "tokenizer_config.json") or {}
        self._truncation_side = self._tokenizer.get("truncation_side") or _saved_truncation_side(transformer)
        self._has_adapter = has_adapter(transformer)

    def why_foreign(self) -> str:
        """Say why the packed engine cannot run the checkpoint; "" where it can."""
        config = self._config
        if config.get("model_type") not in ("bert", XLMR_TYPE):
            return f"its architecture is {config.get('model_type')!r}, neither 'bert' nor {XLMR_TYPE!r}"
        if config.get("hidden_act", "gelu") != "gelu":
            return f"its activation is {config['hidden_act']!r}, not 'gelu'"
        if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
            return "its attention is not BERT's"
        if self._settings.get("do_lower_case"):
            return "it makes small letters of its texts"
        if any(self._settings.get(name) for name in _ARGUMENTS):
            return "it has settings of its own for transformers"
        if self._has_adapter:
            return "it has an adapter (PEFT) beside its weights"
        if self._truncation_side.lower() != "right":
            return "it cuts texts off at their beginning"
        if self._vectors.get("truncate_dim"):
            return "its vectors are cut off (truncate_dim)"
        for kind, full_name, settings in self._modules:
            if kind not in _ORDER_KNOWN:
                return f"it has a module of the type {full_name}"
            if kind == "Pooling" and _pooling_of(settings) is None:
                return "its pooling is none of mean, cls and max"
            if kind == "Pooling" and not settings.get("include_prompt", True):
                return "its pooling leaves the prompt out"
        kinds = [kind for kind, _, _ in self._modules]
        if kinds != [kind for kind in _ORDER_KNOWN if kind in kinds]:
            return f"its modules come in the order {', '.join(kinds)}"
        return ""

    def settings(self) -> EncodingSettings:
        """Return pooling, normalisation, prompt and length, as sentence-transformers has them."""
        pooling = "mean"
        for kind, _, settings in self._modules:
            if kind == "Pooling":
                pooling = _pooling_of(settings) or "other"
        prompts = self._vectors.get("prompts") or {}
        prompt = prompts.get(self._vectors.get("default_prompt_name")) or ""
        # Vectors that are truncated are not normalised again.
        is_cut = bool(self._vectors.get("truncate_dim"))
        normalize = bool(self._modules) and self._modules[-1][0] == "Normalize" and not is_cut
        return EncodingSettings(pooling, normalize, prompt, self._max_length())

    def _max_length(self) -> int:
        config = self._config
        positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 512)
        if any(name in str(config.get("model_type")) for name in ("roberta", "camembert", "mpnet")):
            positions -= int(config.get("pad_token_id", 1)) + 1  # positions begin behind that of padding
        arguments = self._settings.get("tokenizer_args") or self._settings.get("processor_kwargs") or {}
        limit = (
            arguments.get("model_max_length")
            or self._settings.get("max_seq_length")
            or self._tokenizer.get("model_max_length")
        )
        return min(positions, int(limit)) if limit else positions

    def vector_size(self) -> int | None:
        """Return the numbers of a vector, or None where the files do not say."""
        size = next((self._config[name] for name in _WIDTHS if self._config.get(name)), None)
        for kind, _, settings in self._modules:
            if kind == "Pooling":
                width = (
                    settings.get("embedding_dimension") or settings.get("word_embedding_dimension") or size
                )
                size = width * _n_poolings(settings)
            size = settings.get("out_features") or size  # of a Dense module
        cut = self._vectors.get("truncate_dim")
        return min(size, cut) if size and cut else size


def _saved_truncation_side(transformer: Path) -> str:
    """Return where ``tokenizer.json`` cuts texts off, without parsing a large file that says nothing of the left."""
    path = transformer / "tokenizer.json"
    if not path.is_file() or b'"Left"' not in path.read_bytes():
        return "right"
    return (read_json(path).get("truncation") or {}).get("direction", "right")


def _first_json(folder: Path, names: list[str]) -> dict:
    return next((found for name in names if (found := read_json(folder / name)) is not None), {})


def _modes_on(config: dict) -> list[str]:
    mode = config.get("pooling_mode")  # newer releases of sentence-transformers
    if mode is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    return [POOLING_KEYS.get(key, key) for key in on]


def _n_poolings(config: dict) -> int:
    return len(_modes_on(config)) or 1


def _pooling_of(config: dict) -> str | None:
    modes = _modes_on(config)
    return modes[0] if len(modes) == 1 and modes[0] in POOLING_KEYS.values() else None
