"""One look at a migration as a whole: the document that people, scripts and alerts read.

survey     one look at each side: its turn, its positions, its queues, its tables
facts      what gates are judged by, made of those looks
document   `status --json`: the looks, the gates that `stream.gates` judges from the facts, and what to do next
monitor    looks on beside a role: lag twice a second, the migration-wide metrics, since when each gate is as it is

`document.Watch` looks again and again: it remembers each direction's probes of the lag, and what is slow to find out.
Unknown is null, never 0; a side that does not answer takes away only what it alone knows, and is named under `errors`.

Deliberately absent: a layout for people, which is `stream.cli.screen`.
"""
