"""Text to batches: sources, tokenizers, the split by document, packing, and resumable sharded loading.

sources          text sources: the standard library, local files, Hugging Face data sets
mixture          a weighted mixture of text sources
tokenizers       text to ids and back
split            assignment of documents to training or validation
packing          documents to one token stream, the stream to windows
token_file       a corpus tokenised once, with its windows shuffled
streaming        a corpus read while training, with its windows dealt from lanes
synthetic        tasks with known answers
synthetic_stream sequences of a task as training and held-out sequences
window_stream    interface of the streams of training sequences
loader           windows to the micro-batches of one rank, with a position to resume from
plugin_checks    checks of what text sources, tokenizers and tasks return
cache            folder of token files and trained tokenizers
"""
