"""Evaluations of trained models: what gists keep and how well LensNet focuses, against baselines of equal cost.

eval_data       held-out sequences, with the document of every token
eval_model      a model, run in batches on all ranks
document_means  means with 95 % intervals over documents
gist_quality    full, drop, mean, swap and gist under one focus
focus_quality   random, recency, surprise, lens and oracle at one budget
history_arms    ways to fit a long history into one budget
long_context    accuracy and NLL after long histories, by arm
report          tables, JSON and charts
"""
