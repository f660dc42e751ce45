"""The protocol in minutes on a CPU: generated images and the small shipped model."""

from tokenpool.train.recipe import Preset, Recipe

# Mixing images or erasing parts of them would change the two materials, and so the label.
_AUGMENT = dict(augment="pebbles", mixup=0.0, cutmix=0.0, erasing=0.0, rand_augment="", color_jitter=0.0,
                drop_path=0.0, smoothing=0.0, clip_grad=1.0, min_lr=0.0, warmup_lr=0.0)

PRESET = Preset(
    name="pebbles",
    data="pebbles", train_split="", val_split="", classes=30,
    models={"vit": ("pebbles_vit", {})},
    base=Recipe(epochs=14, batch_size=128, lr=1.5e-3, warmup_epochs=1, **_AUGMENT),
    search=Recipe(epochs=2, batch_size=128, lr=1e-4, warmup_epochs=0.2, mask_lr=3e-2, **_AUGMENT),
    finetune=Recipe(epochs=2, batch_size=128, lr=5e-4, warmup_epochs=0.2, **_AUGMENT),
    penalties=(1e-4, 3e-4, 1e-3),
    budgets=(0.42, 0.6, 0.7),
    train_images=40_000, finetune_images=6_000, val_images=1_000,
    shipped={"base-vit-s0": "pebbles_vit/model.safetensors"},
    expects="99.8 % for the shipped base model, 21 minutes on two Intel Xeon cores; half a minute per finetuning.")
