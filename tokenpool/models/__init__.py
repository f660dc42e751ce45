"""The same inside a ViT. Importing it adds deit_e252, deit_e318 and pebbles_vit to timm's registry."""

import tokenpool.models.names  # noqa: F401
