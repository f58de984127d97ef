"""Data of the interactive parts of a page: tables in, plain values out."""
