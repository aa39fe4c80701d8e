"""`prepare`, `arm`, `upgrade`, `cancel`, `finalize`: what a migration stands on, made and taken away. See README.md."""
