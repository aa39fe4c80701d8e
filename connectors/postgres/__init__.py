"""PostgreSQL's edge. All SQL sessions come from `session`, which pins what a role's settings could bend."""
