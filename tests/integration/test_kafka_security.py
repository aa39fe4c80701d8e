"""SASL and TLS: kafka.options reach every client of ours, and what is refused says so (hazard H4)."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from connectors.kafka.epochs import last_epoch
from connectors.kafka.reader import EpochReader
from connectors.kafka.registry import TopicRegistry
from connectors.kafka.topics import Kind, Topics, TopicSpec
from connectors.kafka.writer import EpochWriter
from schemas.errors import PrivilegeMissing
from tests.fixtures.sasl import USER, sasl_kafka
from tests.fixtures.stream import epoch_record, following

PASSWORD = "canary-6f1d"


@dataclass(frozen=True, kw_only=True)
class Secure:
    """A broker's SASL_SSL listener, and the options that open it."""

    bootstrap: str
    options: dict[str, Any]


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for 127.0.0.1: its key and itself in one file, and itself alone in `<name>.ca.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.ca.pem").write_bytes(pem)
    whole = folder / f"{name}.pem"
    whole.write_bytes(secret + pem)
    return whole


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("tls")
    settings = {
        "listener.name.secure.ssl.keystore.type": "PEM",
        "listener.name.secure.ssl.keystore.location": str(certificate(folder, "broker")),
    }
    options = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(folder / "broker.ca.pem"),
    }
    with sasl_kafka(PASSWORD, "SASL_SSL", settings) as (_, address):
        yield Secure(bootstrap=address, options=options)


def test_every_client_goes_through(secure: Secure, topic_prefix: str) -> None:
    where = (secure.bootstrap, secure.options)
    rows, epochs, schemas = (f"{topic_prefix}.{n}" for n in ("rows", "epochs", "schemas"))
    specs = [
        TopicSpec(name=rows),
        TopicSpec(name=epochs, kind=Kind.EPOCHS),
        TopicSpec(name=schemas, kind=Kind.SCHEMAS),
    ]
    Topics(*where).ensure(specs)
    assert Topics(*where).check(specs) == []
    schema_id = TopicRegistry(*where, schemas).register("s", {"type": "string"})
    assert TopicRegistry(*where, schemas).get(schema_id) == {"type": "string"}
    with ExitStack() as opened:
        writer = EpochWriter(*where, transactional_id=topic_prefix, epochs_topic=epochs)
        opened.callback(writer.close)
        writer.start()
        writer.publish({(rows, 0): [(None, b"x")]}, lambda extents: epoch_record(1, extents).to_json())
        found = last_epoch(*where, epochs)
        assert found is not None
        assert found.epoch == 1
        reader = EpochReader(*where, epochs_topic=epochs, topics=[rows], offsets={}, after_epoch=0)
        opened.callback(reader.close)
        assert following(reader, 1)[0].rows == [b"x"]


@pytest.mark.parametrize(("option", "value"), [("sasl.password", "wrong-password"), ("ssl.ca.location", None)])
def test_what_is_refused_says_so_and_shows_no_secret(
    secure: Secure, tmp_path: Path, option: str, value: str | None
) -> None:
    certificate(tmp_path, "other")
    options = {**secure.options, option: value or str(tmp_path / "other.ca.pem")}
    with pytest.raises(PrivilegeMissing) as refused:
        Topics(secure.bootstrap, options, timeout_s=5).broker_facts()
    assert "sasl" in refused.value.hint
    assert PASSWORD not in str(refused.value)
    assert "wrong-password" not in str(refused.value)
