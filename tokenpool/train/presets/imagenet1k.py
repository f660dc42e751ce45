"""The paper's own setting: DeiT at 224 x 224 on ImageNet-1k. Eight GPUs, days.

    torchrun --nproc-per-node 8 -m tokenpool.cli train --preset imagenet1k --model ti --data wds/SHARDS

The base recipe is DeiT's (P). The finetuning recipe is ours (I, 30 epochs as usual): the paper's is not known.
"""

from tokenpool.train.recipe import Preset, Recipe

PRESET = Preset(
    name="imagenet1k",
    data="wds/imagenet1k", train_split="train", val_split="validation", classes=1000,
    models={"ti": ("deit_tiny_patch16_224", {}), "e252": ("deit_e252_patch16_224", {}),
            "e318": ("deit_e318_patch16_224", {}), "s": ("deit_small_patch16_224", {})},
    base=Recipe(epochs=300, batch_size=1024, lr=1e-3, repeats=3, ema=0.99996, precision="bf16", workers=10),
    search=Recipe(epochs=30, batch_size=1024, lr=5e-5, warmup_epochs=1, repeats=3, drop_path=0.0, mask_lr=1e-3,
                  precision="bf16", workers=10),
    finetune=Recipe(epochs=30, batch_size=1024, lr=1e-4, warmup_epochs=1, repeats=3, precision="bf16", workers=10),
    penalties=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    budgets=(0.2, 0.3, 0.42, 0.5, 0.6, 0.7),
    expects="Not run; verified by a dry run (shapes, MACs, one step, loader). DeiT reports 72.2 % (Ti), 79.8 % (S).")
