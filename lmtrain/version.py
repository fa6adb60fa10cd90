"""The version of lmtrain."""

__version__ = "0.1.0"
