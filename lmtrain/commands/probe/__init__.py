"""`lmtrain probe`: how well the hidden states of pretrained encoders predict the labels of texts or words.

`labels` reads labelled rows and makes the baseline, `entities` finds entity spans in tags, `encoder` computes frozen
features, `classifier` fits a logistic regression on them or fine-tunes, `label_metrics` scores the predictions,
`metrics_table` shows the results, and `probe` runs all of it.
"""
