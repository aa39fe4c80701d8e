"""`prepare`, `arm`, `cancel` and `finalize`: what a migration stands on, made and taken away again. See README.md."""
