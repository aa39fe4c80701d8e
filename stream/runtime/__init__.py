"""A role as a process, and all of them under one supervisor.

process      builds a role for its worker: the one module that names concrete classes together
worker       runs it: what is tried again, what waits for an operator, how it is stopped
supervisor   `slackwater run` without a role: each role a child process, started again when it dies

`slackwater run` asks `process` for the roles that the migration wants now and has the supervisor keep them alive;
`slackwater run ROLE` is one `Process`: its heartbeat, its monitor, and a `Worker` that builds the role, runs it until
it raises, and builds it anew if the error says BACKOFF.

Deliberately absent: knowledge of what a role does. Only `stream.cli` imports this room.
"""
