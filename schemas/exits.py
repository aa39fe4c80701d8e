"""What a command's exit status means. Scripts branch on these: they never change."""

from __future__ import annotations

from typing import Final

DONE: Final = 0  # done, or already so
FAILED: Final = 1  # the error names cause and remedy
USAGE: Final = 2  # usage or configuration
NO: Final = 3  # refused, or the answer is no: every reason listed
ABORTED: Final = 4  # aborted safely, by itself or by Ctrl-C or SIGTERM: the side that was open is open, nothing lost
AMBIGUOUS: Final = 5  # the state could not be proven; says what to look at and what to run
