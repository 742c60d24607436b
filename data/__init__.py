"""Datasets and their transforms."""
