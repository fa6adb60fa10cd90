"""Names of the files in a run folder."""

RECIPE, RESULTS, METRICS, SAMPLES = "recipe.yaml", "results.json", "metrics.jsonl", "samples.jsonl"
PREDICTIONS, REPORT, CARD = "predictions.jsonl", "report.html", "README.md"
MODEL_ASIDE, PARTS = ".model", ".*.part"
"""Temporary names while writing: the folder of the model's files, and single files."""
