"""How data flows, and who decides: capture, apply, backfill, lag, phases, and the verbs on top of them."""
