"""Photographs on a CPU: tiny-imagenet-50 with a third of DeiT's widths, half its depth, 64 tokens.

The paper's four widths 192, 252, 318, 384 become 64, 84, 106, 128 with two heads each: small enough for two CPU cores,
large enough for methods to differ.
"""

from tokenpool.train.recipe import Preset, Recipe

_SHAPE = dict(img_size=64, patch_size=8, depth=6, num_heads=2, num_classes=50)

PRESET = Preset(
    name="imagenet50_cpu",
    data="../shared/data/tiny-imagenet-50",
    train_split="train", val_split="validation", classes=50,
    models={name: ("deit_tiny_patch16_224", _SHAPE | dict(embed_dim=width))
            for name, width in (("ti", 64), ("e252", 84), ("e318", 106), ("s", 128))},
    base=Recipe(
        epochs=20, batch_size=128, lr=1.5e-3, warmup_epochs=2, clip_grad=1.0,
        # 25,000 images and 0.3 M weights: the model underfits, so DeiT's heavy regularisation only slows it (I)
        mixup=0.0, cutmix=0.0, drop_path=0.0, rand_augment="", erasing=0.0, color_jitter=0.0, crop=0.35),
    search=Recipe(
        epochs=2, batch_size=128, lr=1e-4, warmup_epochs=0.2, clip_grad=1.0, mask_lr=1e-2,
        mixup=0.0, cutmix=0.0, drop_path=0.0, rand_augment="", erasing=0.0, color_jitter=0.0, crop=0.35),
    finetune=Recipe(
        epochs=1, batch_size=128, lr=5e-4, warmup_epochs=0.1, clip_grad=1.0,
        mixup=0.0, cutmix=0.0, drop_path=0.0, rand_augment="", erasing=0.0, color_jitter=0.0, crop=0.35),
    penalties=(1e-4, 3e-4, 1e-3),
    budgets=(0.3, 0.42, 0.6, 0.75),
    shipped={"base-ti-s0": "imagenet50_cpu/base-ti-s0.safetensors"},
    expects="40.7 % for base model ti after 30 minutes on one core of an Intel Xeon; a finetuning takes 1.5 minutes.")
