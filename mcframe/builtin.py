"""The implementations that mcframe registers itself; plug-ins under `plugins/` register the others."""

from mcframe.data.chat_files import ChatFiles
from mcframe.data.local_files import LocalFiles
from mcframe.data.mixture import Mixture
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.data.sources import HuggingFace, StandardLibrary
from mcframe.data.synthetic.facts import Facts
from mcframe.data.synthetic.induction import Induction
from mcframe.data.synthetic.needle import Needle
from mcframe.data.synthetic.recall import Recall
from mcframe.data.synthetic.variable_tracking import VariableTracking
from mcframe.data.tokenizers import BPE, Bytes
from mcframe.evaluation.focus_quality import FocusQuality
from mcframe.evaluation.gist_quality import GistQuality
from mcframe.evaluation.harness_callback import HarnessTasks
from mcframe.evaluation.long_context import LongContext
from mcframe.hookspecs import Register, hookimpl
from mcframe.metrics.prometheus_logger import PrometheusLogger
from mcframe.modeling.bounded_positions import ClampedPositions, EntryPositions, LogarithmicPositions
from mcframe.modeling.gpt import GPT
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.modeling.rope import GaussianRope

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register base models, positions, text sources, tokenizers, tasks, evaluations, callbacks and loggers."""
    register("gpt", GPT)
    register("huggingface", HuggingFaceBase)
    register("gaussian_rope", GaussianRope)
    register("entry", EntryPositions)
    register("logarithmic", LogarithmicPositions)
    register("clamp", ClampedPositions)
    register("standard_library", StandardLibrary)
    register("local_files", LocalFiles)
    register("chat", ChatFiles)
    register("huggingface", HuggingFace)
    register("mixture", Mixture)
    register("bytes", Bytes)
    register("bpe", BPE)
    register("huggingface", HuggingFaceTokenizer)
    register("recall", Recall)
    register("facts", Facts)
    register("needle", Needle)
    register("variable_tracking", VariableTracking)
    register("induction", Induction)
    register("gist_quality", GistQuality)
    register("focus_quality", FocusQuality)
    register("long_context", LongContext)
    register("lm_eval", HarnessTasks)
    register("prometheus", PrometheusLogger)
