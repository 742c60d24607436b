"""Datasets, their transforms and their order."""
