"""Tokenizers with a chat template."""

import json
from pathlib import Path

from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
START, END = 300, 301


def chat_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with the special tokens and the template of ChatML, and return its folder."""
    HuggingFaceTokenizer.example_settings(folder)
    fields = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for index, name in ((START, "<|im_start|>"), (END, "<|im_end|>")):
        fields["added_tokens"].append({**fields["added_tokens"][0], "id": index, "content": name})
    (folder / "tokenizer.json").write_text(json.dumps(fields), "utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, "utf-8")
    return folder
