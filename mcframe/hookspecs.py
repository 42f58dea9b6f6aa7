"""The plug-in API: every hook and every interface that a plug-in implements.

A plug-in is a module or an object with functions marked `@mcframe.hookspecs.hookimpl`, published under the
entry-point group `mcframe.plugins`. A `register_*` hook receives `register(name, factory)`; what is registered
becomes a gin configurable in a module named after the kind, so that

    run.gistnet = @gistnet.NAME
    gistnet.NAME.layers = 4

selects and parameterises it. A factory is called with the positional arguments listed at its interface below and
with whatever gin binds to its keyword parameters.

Shapes: B sequences, V variants of each, R = B * V rows (row r belongs to sequence r // V), T tokens, K block size,
G slots, D width, L entries of a working context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pluggy
from torch import Tensor, nn

from mcframe.context.controls import Condition
from mcframe.context.geometry import Geometry
from mcframe.context.working_context import WorkingContext
from mcframe.findings import Chart as Chart
from mcframe.findings import Findings as Findings
from mcframe.findings import Interval as Interval
from mcframe.findings import Table as Table

API_VERSION = "0.1"
PROJECT = "mcframe"
ENTRY_POINT_GROUP = "mcframe.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class ModelShape:
    """What a network plug-in must fit: the base model's width D and the tree's geometry."""

    width: int
    geometry: Geometry


# ---- the four kinds ------------------------------------------------------------------------------
class GistNet(nn.Module, ABC):
    """Compresses the K children of each node into one gist of G slots. Factory: `factory(shape)`."""

    context_blocks: int | None = 0
    """How many blocks to its left a gist may read besides its own; 0 = isolated, None = everything to its left.
    With `reads_layer` always None, for the states that it reads have read all of it."""

    reads_layer: int = 0
    """What stands for a token among the children: 0 = its embedding; n = its state in the uncompressed pass after n
    blocks of the base model. Such states have read everything to their left, so gists are contextual at no cost."""

    reads_tokens: bool = False
    """True where gists of every level are made from tokens (`K**lod` children) instead of the gists one level below."""

    @abstractmethod
    def forward(self, children: Tensor, lod: int) -> Tensor:
        """Gists of every node at `lod`.

        children [B, nodes, K * slots(lod - 1), D] -> gists [B, nodes, G, D], same dtype and device
        (children [B, nodes, K**lod, D] with `reads_tokens`).
        Differentiable; deterministic in eval mode; node i depends on nodes i - context_blocks .. i only
        (on nodes up to i where that is None).
        Called once a level in every step, level 1 first.
        """


class LensNet(nn.Module, ABC):
    """Scores every working-context entry: > 0 "expand me", < 0 "collapse me". Factory: `factory(shape)`."""

    reads_nll: bool = False
    """True where it wants `context.nll`: what the uncompressed model made of the tokens of each entry, in nats. Of the
    class or of an instance. Training has that pass anyway; refocusing runs it once more for such a LensNet."""

    @abstractmethod
    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Scores in [-1, 1].

        context has the entries before the cursor only; embeddings [R, L, D] are detached -> scores [R, L].
        `context.nll` [R, L] with `reads_nll`, else None: mean NLL of the tokens that the entry's node covers, of those
        before the cursor, detached; 0 for the window's first token, which nobody predicted.
        Must ignore entries where `context.valid` is False. Deterministic in eval mode.
        """


class Allocator(ABC):
    """Turns scores and a budget into the next working context. Factory: `factory(geometry)`."""

    iterations: int = 1
    """How often the framework scores and allocates again before it takes the focus."""

    @abstractmethod
    def allocate(self, scores: Tensor, context: WorkingContext, budget: int, seeds: Tensor) -> Tensor:
        """The next focus.

        scores [R, L] belong to the entries of `context` (those before the cursor); budget is the most entries that the
        whole window may have; seeds [R] int64 -> focus [R, blocks] int64.
        The focus is valid, of the largest reachable length within the budget unless the allocator's thresholds say
        less; protected blocks stay at LOD0; zero scores change nothing that fits; equal seeds give equal results.
        """


@dataclass(frozen=True)
class Sequences:
    """What a variant strategy may look at: the tokens [B, T] and the geometry."""

    tokens: Tensor
    geometry: Geometry


class VariantStrategy(ABC):
    """Proposes the alternative working contexts that training compares. Factory: `factory(geometry)`."""

    count: int
    """V, variants a sequence; 0 = none, plain training."""

    needs_scores: bool = False
    """True where `propose` wants LensNet's scores of the uncompressed context."""

    @abstractmethod
    def propose(self, sequences: Sequences, scores: Tensor | None, length: int, seeds: Tensor) -> Tensor:
        """Focuses of the asked length.

        scores [B, T up to the cursor] or None; length is reachable (`Geometry.reachable`); seeds [B, V] int64
        -> focus [B, V, blocks] int64, valid, each unrolling to exactly `length` entries, a function of its own
        sequence's seeds, distinct among a sequence's variants where possible.
        """


# ---- data ----------------------------------------------------------------------------------------
class TextSource(ABC):
    """Documents to train on. Factory: `factory()`."""

    streaming: bool = False
    """True where documents are read while training instead of being tokenised once and cached."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A string that changes whenever the documents do; names the token cache."""

    @abstractmethod
    def documents(self, epoch: int = 0) -> Iterator[str]:
        """The documents, in an order that depends on nothing but the source and the epoch.

        Raises UserError where there is nothing to read.
        """


class Tokenizer(ABC):
    """Text to token ids and back. Factory: `factory()`."""

    vocab_size: int
    separator: int
    """The id that stands between documents."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A string that changes whenever the ids do; names the token cache."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without separators."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; bytes that are no UTF-8 become U+FFFD."""

    @abstractmethod
    def byte_lengths(self) -> Tensor:
        """Bytes of text that each id stands for, int64 [vocab_size]; 0 for special tokens. For bits per byte."""


@dataclass(frozen=True)
class TaskBatch:
    """Generated sequences.

    tokens    [B, T + 1] int64
    scored    [B, T] bool: position t counts, so token t + 1 is an answer
    evidence  [B, T] int64: the token position where the answer to the target at t is to be found, -1 where not scored
    """

    tokens: Tensor
    scored: Tensor
    evidence: Tensor


class Task(ABC):
    """Sequences that are generated and whose answers are known. Factory: `factory(geometry)`.

    What is asked stands before the cursor (or is itself an earlier answer's place behind it), what answers it stands in
    blocks that may be collapsed, and the answers stand behind the cursor.
    """

    vocab_size: int
    """Every token id is below this."""

    chance: float | None = None
    """The share of answers that the best guess without the evidence gets right, None where nobody knows."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A string that changes whenever the sequences do."""

    @abstractmethod
    def generate(self, seeds: Tensor) -> TaskBatch:
        """One sequence for each seed [B] int64, a function of that seed alone; the same on every machine."""


# ---- evaluations ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences that a model is judged on.

    tokens     [n, T + 1] int64
    documents  [n, T + 1] int64: the document that each token belongs to; what is resampled for an interval
    scored     [n, T] bool: the target that follows token t counts
    evidence   [n, T] int64: where the answer to the target at t stands, -1 where nobody knows; None for text
    chance     share of the scored targets that the best guess gets right; None where nobody knows
    """

    tokens: Tensor
    documents: Tensor
    scored: Tensor
    evidence: Tensor | None = None
    chance: float | None = None


class Subject(Protocol):
    """The trained model that an evaluation judges. Tensors that go in and come out lie on the CPU."""

    @property
    def geometry(self) -> Geometry:
        """The tree."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def length(self) -> float:
        """Target length of the run's working contexts, as a fraction of the window."""

    @property
    def seed(self) -> int:
        """Of everything that evaluations draw; the same for every run, so that all are judged alike."""

    @property
    def has_gists(self) -> bool:
        """Whether the model was trained with a GistNet; else it knows no `gist` and no `swap`."""

    @property
    def has_lens(self) -> bool:
        """Whether it was trained with a LensNet, so that `refocus` works."""

    @property
    def twins(self) -> Mapping[str, Subject]:
        """Models to compare with: `drop`, trained to live with gaps; `mean`, trained with mean embeddings as gists."""

    def held_out(self, windows: int, task: Callable[[Geometry], Task] | None = None) -> HeldOut:
        """Up to `windows` sequences: of `task` where one is given, else of what the run trains on."""

    def judge(self, tokens: Tensor, focus: Tensor, condition: Condition = "gist") -> tuple[Tensor, Tensor]:
        """What the model makes of every target, whatever stands for the collapsed blocks.

        tokens [n, T + 1]; focus [n, blocks] or, V focuses of each sequence, [n, V, blocks] -> NLL in nats and whether
        the likeliest token was right (1.0 or 0.0), float32 [n, T] or [n, V, T]; NaN where no entry predicts the target
        (position t holds the target that follows token t). `swap` exchanges the gists of neighbours, sequences 2i
        and 2i + 1.
        """

    def refocus(self, tokens: Tensor, budget: int) -> Tensor:
        """The focus [n, blocks] of at most `budget` entries that LensNet and allocator choose for tokens [n, T + 1]."""

    def announce(self, contexts: int) -> None:
        """Say how many more working contexts are about to be judged, for the progress bar."""


class Evaluation(ABC):
    """A question to a trained model. Factory: `factory()`."""

    name: str
    """Names its metrics, `eval/NAME/...`; two evaluations of a run must differ in it."""

    @abstractmethod
    def run(self, subject: Subject) -> Findings:
        """Ask. Every rank calls it with the same subject and must ask the same things in the same order."""


# ---- telemetry sinks -----------------------------------------------------------------------------
@dataclass(frozen=True)
class RunStart:
    """What a sink is told of the run that it is opened for.

    directory      of the run; it exists
    config         every binding by its gin name, macros resolved, as values of JSON
    resume_tokens  where the token clock goes on: what was written behind it is about to be computed anew; None for a
                   fresh start
    """

    directory: Path
    config: Mapping[str, Any]
    resume_tokens: int | None


@dataclass(frozen=True)
class Histogram:
    """How values are distributed: `counts[i]` of them lie from `edges[i]` to `edges[i + 1]`.

    The first and the last bin also hold what lies beyond them.
    """

    edges: Sequence[float]
    counts: Sequence[int]


class TelemetrySink(ABC):
    """Keeps or shows what a run measures. Factory: `factory(run)`, with a `RunStart`. Exists on rank 0 only.

    `tokens` is the token clock's reading, the x axis of everything. A sink that raises in a run is closed and left out
    of the rest of it, with one message that names it: training does not depend on who watches. What cannot be shown
    is not overridden.
    """

    @property
    def place(self) -> tuple[str, str] | None:
        """A label, and where to look or what to run to see what was written; None where there is nothing to say."""
        return None

    @abstractmethod
    def write(self, tokens: int, step: int, metrics: Mapping[str, float]) -> None:
        """Take metrics that were read back at this token count and optimizer step, reduced over ranks.

        Called once a logging interval and once a validation, which may fall on the same step. Values may be NaN.
        """

    def text(self, tokens: int, name: str, text: str) -> None:
        """Take a text of several lines in which columns line up, such as strips of working contexts, or samples."""
        return

    def image(self, tokens: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Take a picture: red, green and blue of every pixel, [height, width, 3] from the upper left corner."""
        return

    def histogram(self, tokens: int, name: str, histogram: Histogram) -> None:
        """Take a distribution over the logging interval that ends here."""
        return

    def close(self) -> None:
        """Write what is left: the run has ended, or this sink has raised."""
        return


# ---- the run, as lifecycle hooks see it ----------------------------------------------------------
@dataclass(frozen=True)
class RunInfo:
    """A run: its directory, rank, world size and the token clock's reading."""

    directory: Path
    rank: int
    world_size: int
    tokens: int
    step: int
    total_tokens: int


class Register(Protocol):
    """What a `register_*` hook calls, once for each thing it has to offer."""

    def __call__(self, name: str, factory: Callable[..., Any], /) -> None:
        """Offer `factory` under `name` (letters, digits and underscores)."""


class Hooks:
    """Hook specifications. Implement any of them with `@hookimpl`; parameters may be left out, not renamed."""

    @hookspec
    def register_gistnets(self, register: Register) -> None:
        """Offer GistNets: `register("name", GistNetSubclass)`."""

    @hookspec
    def register_lensnets(self, register: Register) -> None:
        """Offer LensNets."""

    @hookspec
    def register_allocators(self, register: Register) -> None:
        """Offer allocators."""

    @hookspec
    def register_variants(self, register: Register) -> None:
        """Offer variant strategies."""

    @hookspec
    def register_text_sources(self, register: Register) -> None:
        """Offer text sources."""

    @hookspec
    def register_tokenizers(self, register: Register) -> None:
        """Offer tokenizers."""

    @hookspec
    def register_tasks(self, register: Register) -> None:
        """Offer generated tasks."""

    @hookspec
    def register_evaluations(self, register: Register) -> None:
        """Offer evaluations."""

    @hookspec
    def register_sinks(self, register: Register) -> None:
        """Offer telemetry sinks."""

    @hookspec
    def run_started(self, run: RunInfo) -> None:
        """The engine is built and, on resumption, loaded; the first step comes next. Called on every rank."""

    @hookspec
    def step_finished(self, run: RunInfo) -> None:
        """An optimizer step is done. Called on every rank, in the hot path: read no tensor here."""

    @hookspec
    def metrics_logged(self, run: RunInfo, metrics: Mapping[str, float]) -> None:
        """A logging interval or a validation has been read back; `metrics` is reduced over ranks. Rank 0 only."""

    @hookspec
    def checkpoint_saved(self, run: RunInfo, checkpoint: Path) -> None:
        """A checkpoint is complete on disk. Called on every rank."""

    @hookspec
    def run_finished(self, run: RunInfo, summary: Mapping[str, Any]) -> None:
        """The run has ended, finished or interrupted. Rank 0 only."""
