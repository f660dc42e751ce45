"""The three steps of the protocol: train a base model, search for K per layer, finetune with pooling."""


class Stop(Exception):
    """A run that cannot continue. The text says why, and what to do."""
