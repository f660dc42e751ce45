"""`python -m tokenpool.core.kernels`: compile the loops for the CPU now, so that no one has to wait for it later."""

import torch

from tokenpool.core import clustering, kernels

if __name__ == "__main__":
    ops = kernels.pick("auto", torch.device("cpu"))
    x = clustering.centred(torch.randn(2, 8, 4))
    d, mass = ops.pairwise(x), torch.ones(2, 8)
    init = ops.farthest_first(d, 3)
    labels, _ = ops.k_medoids(d, init, mass, 1)
    ops.k_means(x, init, mass, 1)
    ops.agglomerative(d, 3, mass)
    ops.cluster_means(x, labels, 3, mass)
