"""A pretrained decoder of transformers as the base model.

Its layers are called one by one, with the rotation and the mask of mcframe: transformers takes gaps between positions
for packed sequences where it builds the mask itself, and would cut attention at every collapsed block.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcframe.bounds import Positive, Size
from mcframe.context.working_context import WorkingContext
from mcframe.errors import UserError, require
from mcframe.hookspecs import (
    BaseModel,
    BaseShape,
    HeadShape,
    KVCache,
    ParamGroup,
    causal_mask,
    document_mask,
    group_parameters,
)
from mcframe.modeling.low_rank import LowRankChanges
from mcframe.pretrained import (
    ModelFiles,
    check_architecture,
    model_files,
    naming,
    neutral_token,
    planned_files,
    quiet_transformers,
)

_PATH = "base.huggingface.path"
_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on the length of a context."""


class HuggingFaceBase(BaseModel):
    """A pretrained decoder of transformers with rotary positions: Llama, Mistral, Qwen2, Qwen3, SmolLM3.

    Needs the extra `pretrained`. Its weights are read as float32. Checkpoints omit what is frozen, with a checksum of
    the files that have it.

    Source:
        LoRA (Hu et al., 2021), by peft.

    Args:
        path: A folder with config.json and safetensors files, a GGUF file, `package:NAME/FILE` (a file of an installed
            package), or a name of the hub.
        trained: nothing: the model is frozen. lora: low-rank changes of all maps of its layers. all: every weight.
        lora_rank: Rank of the changes.
        lora_alpha: Factor on the changes, times lora_rank.
        lora_from: start: the changes act on every entry. gist: on the first gist of a context and what follows, so
            that a context without gists is read as the pretrained model reads it.
        activation_checkpointing: Recompute layers in the backward pass (non-reentrant): less memory, more time.
    """

    masks_documents = True

    def __init__(
        self,
        shape: BaseShape,
        /,
        *,
        path: str,
        trained: Literal["nothing", "lora", "all"] = "nothing",
        lora_rank: Size = 16,
        lora_alpha: Positive = 32.0,
        lora_from: Literal["start", "gist"] = "start",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        with naming(_PATH):
            files = planned_files(path) if _without_data() else model_files(path)
            check_architecture(files)
            model = _loaded(files)
        config, decoder = model.config, model.model
        self.vocab_size, self.width, self.depth = config.vocab_size, config.hidden_size, config.num_hidden_layers
        self.heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width = getattr(config, "head_dim", None) or self.width // self.heads
        self.activation_checkpointing = activation_checkpointing
        _check_fit(files, config, shape)
        self.tree, (self.frequencies, self.rotation_scale) = shape.tree, _rotation(files, decoder)
        self.positions = shape.positions(HeadShape(self.heads, self.head_width, shape.tree, self.frequencies))
        self.token_embed, self.layers, self.norm = decoder.embed_tokens, decoder.layers, decoder.norm
        self.lm_head = model.lm_head
        self.files = files
        self._lora: LowRankChanges | None = None
        if trained != "all":
            self.requires_grad_(False)
            self.positions.requires_grad_(True)
            if trained == "lora":
                self._lora = LowRankChanges(self.layers, lora_rank, lora_alpha, from_gist=lora_from == "gist")
            own = {id(each) for each in self.positions.parameters()}
            self.external_weights = frozenset(
                name
                for name, each in self.named_parameters(remove_duplicate=False)
                if not each.requires_grad and id(each) not in own
            )
        self.register_state_dict_post_hook(_omit_external)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_external)  # type: ignore[no-untyped-call]

    @staticmethod
    def example_settings(folder: Path) -> dict[str, Any]:
        """Return settings of a small Llama with random weights."""
        transformers = quiet_transformers()
        config = transformers.LlamaConfig(
            vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=1024, tie_word_embeddings=True,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
        return {"path": str(folder)}

    @property
    def reads_gists(self) -> bool:
        """True if low-rank changes act from the first gist of a context on."""
        return self._lora is not None and self._lora.from_gist

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        heads: int = self._kv_heads
        return heads

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameter groups: the head is a table of tokens, and often the same one."""
        return group_parameters(self, embedding=[self.lm_head])

    def neutral_embedding(self) -> Tensor:
        """Return the embedding [D] of a newline."""
        embedding: Tensor = self.token_embed.weight[neutral_token(self.files)].detach().clone()
        return embedding

    def get_extra_state(self) -> dict[str, str]:
        """Return a checksum of the files that have the frozen weights."""
        return {"digest": self.files.digest if self.external_weights else ""}

    def set_extra_state(self, state: Mapping[str, str]) -> None:
        """Compare the files with those of a checkpoint. Raises UserError if they differ."""
        saved, own = state["digest"], self.get_extra_state()["digest"]
        if saved != own:
            raise UserError(
                f"{self.files.origin}: expected the files with which the checkpoint was trained, checksum "
                f"{saved or 'of no files'}, got {own or 'a model whose weights are in the checkpoint'}",
                remedy=f"Set {_PATH} to the same model, and base.huggingface.trained as in that run.",
                binding=_PATH,
            )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, D] of tokens [B, T]."""
        embeddings: Tensor = self.token_embed(tokens)
        return embeddings

    def states(self, embeddings: Tensor, context: WorkingContext, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Return the final states, normalised, and the states after `layer` layers, [R, L, D] each."""
        x, kept = self._through(embeddings, context, layer, self.depth)
        return self.norm(x), kept

    def states_after(self, embeddings: Tensor, context: WorkingContext, layer: int) -> Tensor:
        """Return the states after `layer` layers [R, L, D], without the layers that follow."""
        return self._through(embeddings, context, layer, layer)[1] if layer else embeddings

    def _through(self, embeddings: Tensor, context: WorkingContext, layer: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the states after `last` layers, at least 1, before the norm, and those after `layer`."""
        x = kept = embeddings
        factors = self._factors(self.positions(context), x)
        options: dict[str, Any] = {"attention_mask": document_mask(context.document), "position_embeddings": factors}
        acts = None if self._lora is None else self._lora.acts_on(context)
        for number, block in enumerate(islice(self.layers, last), start=1):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._layer, block, acts, x, **options, use_reentrant=False)
            else:
                x = self._layer(block, acts, x, **options)
            if number == layer:
                kept = x
        return x, kept

    def extend(self, embeddings: Tensor, lod: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache) -> Tensor:
        """Return the final states [1, n, D] of entries that follow those in the cache, and store them there."""
        x, count = embeddings, lod.shape[1]
        mask = causal_mask(count, cache.length + count, x.device)
        mask = None if mask is None else mask[None, None]
        factors = self._factors(rotation, x)
        acts = None if self._lora is None else self._lora.acts_after(cache.lods, lod)
        for block in self.layers:
            held = _LayerCache(cache, lod)
            x = self._layer(block, acts, x, attention_mask=mask, position_embeddings=factors, cache=held)
        cache.advance(count)
        states: Tensor = self.norm(x)
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocabulary], float32, of states [..., D]."""
        logits: Tensor = self.lm_head(hidden).float()
        return logits

    def _layer(self, block: nn.Module, acts: Tensor | None, x: Tensor, **options: Any) -> Tensor:
        """Run a layer; its low-rank changes act where `acts` is 1, here and where the backward pass repeats it."""
        if self._lora is not None:
            self._lora.acts = acts
        states: Tensor = block(x, **options)
        return states

    def _factors(self, rotation: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [R or 1, L, head_width] in the form that transformers multiplies with."""
        cosine, sine = rotation
        assert cosine.shape[1] == 1, "a pretrained model rotates all heads alike"
        turned = (torch.cat((each[:, 0], each[:, 0]), dim=-1) * self.rotation_scale for each in (cosine, sine))
        first, second = (each.to(x.dtype) for each in turned)
        return first, second


class _LayerCache:
    """The cache of keys and values as a layer of transformers calls it."""

    def __init__(self, cache: KVCache, lod: Tensor) -> None:
        self._cache, self._lod = cache, lod

    def update(self, keys: Tensor, values: Tensor, layer: int, **options: object) -> tuple[Tensor, Tensor]:
        """Store what a layer computed for new entries; return that of all entries."""
        keys, values, _ = self._cache.append(layer, keys, values, self._lod)
        return keys, values


def _without_data() -> bool:
    """Return whether modules are built on the meta device."""
    return torch.get_default_device().type == "meta"


def _loaded(files: ModelFiles) -> Any:
    """Return the model of transformers with its weights, or without data on the meta device."""
    transformers = quiet_transformers()
    options = {"attn_implementation": "sdpa", "dtype": torch.float32}
    if _without_data():
        config = transformers.AutoConfig.from_pretrained(files.folder, local_files_only=True)
        return transformers.AutoModelForCausalLM.from_config(config, **options)
    names = files.weight_files
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            files.folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        raise UserError(
            f"{files.origin} cannot be read: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            remedy="Download the model again, with all of its files.",
        ) from error
    if missing := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise UserError(
            f"{files.origin}: {len(missing)} weights of {files.architecture} are missing in "
            f"{', '.join(each.name for each in names[:2])}: {', '.join(missing[:3])}",
            remedy="Download the model again, with all of its files.",
        )
    return model


def _omit_external(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Remove what is read from files from a state dict."""
    assert isinstance(module, HuggingFaceBase)
    for name in module.external_weights:
        state.pop(f"{prefix}{name}", None)


def _add_external(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Add what was read from files to a state dict that is loaded."""
    assert isinstance(module, HuggingFaceBase)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in module.external_weights:
            state.setdefault(f"{prefix}{name}", parameter.detach())


def _check_fit(files: ModelFiles, config: Any, shape: BaseShape) -> None:
    """Raise UserError if tokenizer or window do not fit the model."""
    own, size = config.vocab_size, shape.vocab_size
    # Rows of the embedding are padded by up to a few hundred; a tokenizer of another model differs by more.
    require(
        size <= own <= size + max(1024, size // 50),
        "run.tokenizer",
        size,
        f"the tokenizer of {files.origin}, which has {own:,} entries",
        f"Set run.tokenizer = @tokenizer.huggingface and tokenizer.huggingface.path to {files.origin}.",
    )
    sliding = getattr(config, "sliding_window", None) if _slides(config) else None
    longest = min(config.max_position_embeddings, sliding or config.max_position_embeddings)
    require(
        shape.tree.window <= longest,
        "context.window",
        shape.tree.window,
        f"at most {longest:,}, the range of {files.origin}",
    )


def _slides(config: Any) -> bool:
    """Return whether some layer attends to the last entries alone."""
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None


def _rotation(files: ModelFiles, decoder: Any) -> tuple[tuple[float, ...], float]:
    """Return the frequencies of the model in radians a token, and the factor on cosines and sines."""
    kind = decoder.rotary_emb.rope_type
    parameters: Mapping[str, Any] = decoder.config.rope_parameters
    if kind not in _ROTATIONS or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{files.origin}: expected rotary positions of one of {', '.join(_ROTATIONS)}, got {kind}",
            remedy="Name another model.",
            binding=_PATH,
        )
    with torch.device("cpu"):  # the model may be on the meta device
        rotary = type(decoder.rotary_emb)(config=decoder.config)
    return tuple(rotary.inv_freq.double().tolist()), float(rotary.attention_scaling)
