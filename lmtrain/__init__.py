"""Train causal, masked and sequence-to-sequence language models from the command line, with a loss that is exact."""

__version__ = "0.1.0"
