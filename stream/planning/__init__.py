"""The verbs that print and change nothing: `plan`, `init`, `show` and `grants`.

init     a first migration file, from what both databases hold (pure: tables in, text out)
plan     what will happen: tables and sizes, each mapping as it is understood, what is not moved
ddl      `plan --ddl`: CREATE TABLEs for what new lacks, with the types that PostgreSQL gives each mapping's SELECT
grants   the least that each role needs on each side, as SQL
show     old rows beside the new rows they become, by the mapping's own text and without the engine

Deliberately absent: anything that writes. `new.ddl` is tried in a transaction that is rolled back, by `preflight.ddl`.
"""
