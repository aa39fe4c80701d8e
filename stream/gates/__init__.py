"""Gates: the conditions that must hold before writes may move, and the looks that they are judged by.

`judge` is pure. `Facts` is everything it needs; `stream.status` gathers it.
"""

from stream.gates.facts import Facts, Look, Stream
from stream.gates.gate import Gate, State, all_passed
from stream.gates.judge import judge

__all__ = ["Facts", "Gate", "Look", "State", "Stream", "all_passed", "judge"]
