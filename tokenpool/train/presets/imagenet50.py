"""Photographs on one GPU: tiny-imagenet-50 with the paper's four widths, 256 tokens."""

from tokenpool.train.recipe import Preset, Recipe

_SHAPE = dict(img_size=64, patch_size=4, num_classes=50)

PRESET = Preset(
    name="imagenet50",
    data="../shared/data/tiny-imagenet-50", train_split="train", val_split="validation", classes=50,
    models={"ti": ("deit_tiny_patch16_224", _SHAPE), "e252": ("deit_e252_patch16_224", _SHAPE),
            "e318": ("deit_e318_patch16_224", _SHAPE), "s": ("deit_small_patch16_224", _SHAPE)},
    # 25,000 images are few for a ViT: DeiT's augmentation, but with crops that keep more of a small image
    base=Recipe(epochs=150, batch_size=512, lr=1e-3, warmup_epochs=10, crop=0.3, ema=0.999, clip_grad=1.0,
                precision="bf16", workers=14),
    search=Recipe(epochs=6, batch_size=512, lr=1e-4, warmup_epochs=0.5, crop=0.3, mixup=0.0, cutmix=0.0, drop_path=0.0,
                  mask_lr=1e-2, clip_grad=1.0, precision="bf16", workers=14),
    finetune=Recipe(epochs=10, batch_size=512, lr=3e-4, warmup_epochs=0.5, crop=0.3, clip_grad=1.0, precision="bf16",
                    workers=14),
    penalties=(0.0001, 0.0003, 0.001, 0.003),
    budgets=(0.3, 0.42, 0.6, 0.75),
    expects="Not run yet. Estimate: tens of minutes per base model on one H100-class GPU.")
