"""What the notebooks of the course import: one line, then seven verbs.

    from tokenpool.lab import start
    lab = start("03")

    lab.predict("a")      commit to an answer          lab.reveal("a", evidence)   back to it, after the evidence
    lab.show(fig, see=)   a figure and what to see     lab.explore()               the notebook's explorer
    lab.check("a", f)     is the exercise right?       lab.hint("a")   lab.solution("a")
"""

from tokenpool.lab.kit.session import Lab, start

__all__ = ["Lab", "start"]
