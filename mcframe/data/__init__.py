"""Text to batches: sources, tokenizers, the split by document, packing, and resumable sharded loading.

sources        where documents come from
tokenizers     text to ids and back
split          which documents are held out
packing        documents to one token stream, the stream to windows
materialised   a corpus tokenised once, its windows shuffled
streaming      a corpus read while training, its windows dealt from lanes
loader         windows to the micro-batches of one rank, with a position to resume from
cache          where files that can be made again lie
"""
