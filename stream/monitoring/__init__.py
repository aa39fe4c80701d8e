"""What a process says of itself, and what anybody can read from outside.

From inside: `heartbeat` writes the role's row once a second, `metrics` holds what Prometheus reads, `logs` shapes the
lines on stderr and hides what is secret.

From outside: `sessions` asks both sides within a time limit, so that a frozen server holds up nobody; `views` is what
each side of a direction says in one look; `lag` makes of it how far behind a direction is and who holds it up (pure);
`route` is where an application reads who takes its writes. `clock` is the time as it is told.

Unknown is absent or null throughout, never zero.

Deliberately absent: the look at a migration as a whole, which is `stream.status`, and any verdict on it
(`stream.gates`).
"""
