"""Everything with files and clocks: images, training, measuring, rows, figures, pages."""


class Stop(Exception):
    """A run that cannot go on; its text says why and what to do."""
