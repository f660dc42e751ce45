"""One file per preset. For your own, copy the nearest one and add its name to PRESETS in recipe.py."""
