"""The durable record of one migration: what was prepared, its phase, its journal, its pauses, its topics.

prepared       what `prepare` and `arm` fixed, as one document on new: roles work from it, not from today's catalog
prepared_steps what each version of that document brought, for `upgrade`; how to add a step is told there
paths          which `search_path` users' code has on each side: the file's, or what `prepare` found
phases         the one table of what may follow what (pure)
phase_store    the phase, read and moved on new, each move with its journal entry
journal        who did what, when: a chain of hashes on new
turn_journal   what the journal says of turns; history, never the authority
pauses         the emergency brake: a row per thing that is paused
replaced       tables that took another one's name: which rows are the predecessor's, and that they are left out
silent_changes what moved rows without an event: found in the catalogs, kept until it is done with
topics         a flow's topics in Kafka: made, known again by their ids, taken away

New is the home of all this; each side's own turn row, which says who takes writes, is `connectors.postgres.control`'s.

Deliberately absent: any judgement. Whether a phase may move is in the table; whether it should is for the verbs.
"""
