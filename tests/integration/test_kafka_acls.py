"""The ACLs that the README lists are enough for a whole migration, and for nothing beyond its own names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from connectors.kafka.topics import Topics, TopicSpec
from schemas.errors import PrivilegeMissing
from tests.fixtures.preparing import Shop
from tests.fixtures.running import started_with
from tests.fixtures.sasl import USER, sasl_kafka

README = Path(__file__).parents[2] / "README.md"
RESOURCES = {
    "topics": ResourceType.TOPIC,
    "groups": ResourceType.GROUP,
    "transactional ids": ResourceType.TRANSACTIONAL_ID,
}


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A broker that lets USER do what it is told to let it do, and us everything."""

    bootstrap: str
    ours: str
    options: dict[str, str]


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    options = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": "pw",
    }
    with sasl_kafka("pw", "SASL_PLAINTEXT", settings) as (ours, address):
        yield Guarded(bootstrap=address, ours=ours, options=options)


def documented() -> dict[str, list[str]]:
    """Kind of resource -> operations, as the README's table has them."""
    rows = re.findall(r"^\| (topics|groups|transactional ids) \| ([A-Za-z, ]+) \|$", README.read_text(), re.MULTILINE)
    return {kind: operations.split(", ") for kind, operations in rows}


def allow(broker: Guarded, prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker.ours})
    bindings = [
        AclBinding(
            RESOURCES[kind],
            prefix,
            ResourcePatternType.PREFIXED,
            f"User:{USER}",
            "*",
            AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
            AclPermissionType.ALLOW,
        )
        for kind, operations in documented().items()
        for operation in operations
    ]
    for future in admin.create_acls(bindings).values():
        future.result(20)


@pytest.mark.soak
def test_a_migration_runs_with_the_acls_that_are_documented(guarded: Guarded, shop: Shop, tmp_path: Path) -> None:
    assert set(documented()) == set(RESOURCES)
    allow(guarded, f"{shop.prefix}.{shop.migration}.")
    with pytest.raises(PrivilegeMissing):
        Topics(guarded.bootstrap, guarded.options).ensure([TopicSpec(name=f"{shop.prefix}.another.forward.x.y")])
    options = ", ".join(f"{name}: {value}" for name, value in guarded.options.items())
    text = shop.text.replace("partitions: 2}", f"partitions: 2, options: {{{options}}}}}")
    environment = {"OLD_DSN": shop.old, "NEW_DSN": shop.new, "KAFKA": guarded.bootstrap}
    with started_with(tmp_path, text, environment) as program:
        program("check")
        program("prepare", "--yes")
        program.start("run")
        program("wait", "--for", "phase=streaming", "--timeout", "90")
        program("arm", "--timeout", "90")
        shop.on_old("update shop.customers set email = 'x' where id = 1")
        program.until(lambda: shop.on_new("select email from app.customer where id = 1") == [("x",)])
        program("trace", "customer", "1")
        assert "uthoriz" not in program.log
        for process in program.background:
            process.terminate()
            process.wait(30)
        program("cancel", "--yes")
    left = Topics(guarded.ours, {}).partitions([f"{shop.prefix}.{shop.migration}.forward.epochs"])
    assert left == {}
