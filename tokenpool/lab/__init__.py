"""What the notebooks of the course import: one line and seven verbs.

    from tokenpool.lab import start
    lab = start("03")

    lab.predict("a")      commit to an answer          lab.reveal("a", evidence)   compare with the evidence
    lab.show(fig, see=)   a figure and what to see     lab.explore()               the notebook's explorer
    lab.check("a", f)     check an exercise            lab.hint("a")   lab.solution("a")
"""

from tokenpool.lab.kit.session import Lab, start

__all__ = ["Lab", "start"]
