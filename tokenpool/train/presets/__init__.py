"""One file a preset. To make your own, copy the nearest one and add its name to PRESETS in recipe.py."""
