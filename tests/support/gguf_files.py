"""A Llama model of transformers as a GGUF file, with a byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import transformers

_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(folder: Path, file: Path) -> Path:
    """Write the float32 Llama in a folder, and the tokenizer next to it, as a GGUF file."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    head = config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, folder, config.vocab_size)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp rotates neighbours, transformers halves
                array = array.reshape(heads, 2, head // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(_renamed(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    entries = {**content["model"]["vocab"], **{each["content"]: each["id"] for each in content["added_tokens"]}}
    special = {each["id"] for each in content["added_tokens"]}
    names = {index: name for name, index in entries.items()}
    tokens = [names.get(index, f"<unused{index}>") for index in range(size)]
    kinds = [gguf.TokenType.CONTROL if i in special or i not in names else gguf.TokenType.NORMAL for i in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(min(special))
    writer.add_eos_token_id(min(special))


def _renamed(name: str) -> str:
    """Return the name of a weight in GGUF files."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[part]}.{kind}"
