"""The commands and their options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from .. import __version__
from .._parameters import TRAINING_PRECISIONS
from ._evaluation import parse_trainable, printable

app = typer.Typer(
    help="Evaluate the multilingual MiniLM family.", no_args_is_help=True, pretty_exceptions_enable=False
)


Precision = Enum("Precision", {name: name for name in TRAINING_PRECISIONS}, type=str)  # type: ignore[misc]


class TestSet(str, Enum):
    """What is scored by ``skminilm mlqa``."""

    auto = "auto"
    mlqa = "mlqa"
    xquad = "xquad"


class OnMissingAnswer(str, Enum):
    """As MiniLMQuestionAnswerer.fit has it."""

    error = "raise"
    drop = "drop"


class InitHead(str, Enum):
    """As MiniLMClassifier has it."""

    random = "random"
    probe = "probe"


Model = Annotated[str, typer.Option(help="'bundled', a preset, a hub id, or a folder.")]
OutputDir = Annotated[
    Path, typer.Option(help="Gets results.json and model/: a new folder, or one of an earlier run.")
]
Epochs = Annotated[int, typer.Option(min=1)]
BatchSize = Annotated[int, typer.Option(min=1)]
LearningRate = Annotated[float, typer.Option(help="Of the network, at its peak.")]
HeadLearningRate = Annotated[float, typer.Option(help="Of the head, at its peak.")]
_NETWORKS = "a number of layers, 'encoder', 'all' or 'lora'."
Trainable = Annotated[str, typer.Option(help=f"'head', {_NETWORKS}")]
TrainableNetwork = Annotated[str, typer.Option(help=_NETWORKS.capitalize())]
WeightDecay = Annotated[float, typer.Option()]
WarmupSteps = Annotated[
    Optional[int],  # noqa: UP045  typer of Python 3.10 reads no "int | None" here
    typer.Option(min=0, help="Steps in which the rates rise. Default: 500, a tenth of all at the most."),
]
MaxRows = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="A quick try: the first rows of each language, in each part."),
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:N'.")]
Seed = Annotated[int, typer.Option(help="Drives everything that is random.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skminilm {__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Evaluate the multilingual MiniLM family."""


@contextmanager
def _readable_errors() -> Iterator[None]:
    """End with the message alone where a file or an option is at fault."""
    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,
        ImportError,
        ArithmeticError,
        MemoryError,
        RecursionError,
    ) as error:
        Console(stderr=True).print(f"Error: {printable(error)}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


@app.command()
def xnli(
    data_dir: Annotated[
        Path,
        typer.Option(
            help="Holds XNLI-1.0 and XNLI-MT-1.0, or xnli_dev.tsv.gz; or a name on the hub: facebook/xnli."
        ),
    ],
    output_dir: OutputDir,
    model: Model = "bundled",
    train_language: Annotated[str, typer.Option(help="Two-letter code.")] = "en",
    from_dev: Annotated[
        bool,
        typer.Option(
            "--from-dev", help="With XNLI dev alone: train on its first pairs, score its last ones."
        ),
    ] = False,
    train_rows: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Pairs to train on, with --from-dev. Default: 2000."),
    ] = None,
    test_rows: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Pairs to score in each language, with --from-dev. Default: 490."),
    ] = None,
    max_rows: MaxRows = None,
    epochs: Epochs = 5,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 5e-5,
    head_learning_rate: HeadLearningRate = 1e-2,
    weight_decay: WeightDecay = 0.001,
    warmup_steps: WarmupSteps = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a pair.")] = 128,
    trainable: Trainable = "all",
    init_head: Annotated[InitHead, typer.Option(help="Where the head starts.")] = InitHead.random,
    pooling: Annotated[str, typer.Option(help="As MiniLMClassifier has it.")] = "auto",
    refit_head: Annotated[bool, typer.Option(help="Fit the head anew in the end.")] = False,
    precision: Precision = Precision["auto"],
    device: Device = "auto",
    seed: Seed = 42,
    quiet: Quiet = False,
) -> None:
    """Train on natural language inference in one language, score all 15.

    The epoch is selected on dev, all languages together; test is scored once.
    """
    from ._xnli import run_xnli

    with _readable_errors():
        run_xnli(
            data_dir,
            model,
            train_language,
            output_dir,
            from_dev=from_dev,
            train_rows=train_rows,
            test_rows=test_rows,
            max_rows=max_rows,
            warmup_steps=warmup_steps,
            parameters={
                "trainable": parse_trainable(trainable),
                "init_head": init_head.value,
                "pooling": pooling,
                "refit_head": refit_head,
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "head_learning_rate": head_learning_rate,
                "weight_decay": weight_decay,
                "max_length": max_length,
                "precision": precision.value,
                "device": device,
                "random_state": seed,
                "verbose": int(not quiet),
            },
        )


@app.command()
def mlqa(
    data_dir: Annotated[
        Path,
        typer.Option(
            help="Holds MLQA_V1, or XQuAD (xquad.*.json or xquad.jsonl.gz); or a name on the hub: facebook/mlqa or "
            "google/xquad."
        ),
    ],
    output_dir: OutputDir,
    model: Model = "bundled",
    train_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="In the layout of SQuAD, or a name on the hub: rajpurkar/squad. Default: the training file of "
            "SQuAD or TyDi QA in the data folder."
        ),
    ] = None,
    train_language: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Languages of the training file to use; may be repeated. Default: all."),
    ] = None,
    test_set: Annotated[
        TestSet, typer.Option(help="'auto': MLQA where it is there, otherwise XQuAD.")
    ] = TestSet.auto,
    max_rows: MaxRows = None,
    on_missing_answer: Annotated[
        OnMissingAnswer,
        typer.Option(
            help="What becomes of questions to train on whose answer is in no window of their context."
        ),
    ] = OnMissingAnswer.error,
    epochs: Epochs = 3,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 3e-5,
    head_learning_rate: HeadLearningRate = 1e-2,
    weight_decay: WeightDecay = 0.0,
    warmup_steps: WarmupSteps = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a question with a window of its context.")] = 384,
    stride: Annotated[int, typer.Option(help="Tokens that neighbouring windows share.")] = 128,
    max_answer_length: Annotated[int, typer.Option(help="Tokens of an answer.")] = 30,
    trainable: TrainableNetwork = "all",
    precision: Precision = Precision["auto"],
    device: Device = "auto",
    seed: Seed = 42,
    quiet: Quiet = False,
) -> None:
    """Train on questions whose answers are in their contexts, score all languages of MLQA or XQuAD.

    Nothing is selected: the last epoch is scored, once.
    """
    with _readable_errors():
        from ._mlqa import run_mlqa

        run_mlqa(
            data_dir,
            model,
            output_dir,
            train_file=train_file,
            train_languages=train_language or None,
            test_set=test_set.value,
            max_rows=max_rows,
            on_missing_answer=on_missing_answer.value,
            warmup_steps=warmup_steps,
            parameters={
                "trainable": parse_trainable(trainable),
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "head_learning_rate": head_learning_rate,
                "weight_decay": weight_decay,
                "max_length": max_length,
                "stride": stride,
                "max_answer_length": max_answer_length,
                "precision": precision.value,
                "device": device,
                "random_state": seed,
                "verbose": int(not quiet),
            },
        )
