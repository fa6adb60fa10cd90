"""What the files of a run folder are called."""

RECIPE, RESULTS, METRICS, SAMPLES = "recipe.yaml", "results.json", "metrics.jsonl", "samples.jsonl"
PREDICTIONS = "predictions.jsonl"
MODEL_ASIDE, PARTS = ".model", ".*.part"
"""What is written aside, to take its place when it is whole: the folder of the model, and single files."""
