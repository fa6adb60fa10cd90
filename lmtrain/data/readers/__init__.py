"""Reads files into records: text, JSON, CSV, Parquet and Arrow, tagged sentences, parallel lines, nested data."""
