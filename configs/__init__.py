"""Shipped YAML: base, recipes, sizes, data and the papers' own settings. Read through ``mmpretrain.cli.layering``."""
