"""What a trained model's gists keep and how well it focuses, against honest controls.

held_out    sequences to judge on, with the document of every token
partners    neighbours that exchange their gists
bootstrap   95 % intervals over documents
subject     a model as evaluations see it
controls    full, drop, mean, swap and gist under one focus
focus       random, recency, surprise, lens and oracle at one budget
report      tables, JSON and pictures
"""
