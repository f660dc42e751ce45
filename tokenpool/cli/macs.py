"""The number is that of one image; "without clustering" leaves out what choosing the tokens costs.

    tokenpool macs deit_small_patch16_224 --saving 0.42
"""

from tokenpool.cli.groups import OneModel, PoolingOptions


def run(model: OneModel, pooling: PoolingOptions) -> None:
    import tokenpool as tp
    plain = model.open()
    print(f"plain   {tp.macs(plain)}")
    if pooling.saving or pooling.schedule:
        pooled = pooling.pool(plain)
        print(f"pooled  {tp.macs(pooled)}\nK after each block: {' '.join(map(str, pooled.schedule))}")
