"""Launch: a run's own key and certificate, without which nobody gets into its Dask cluster."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed.security import Security

KEY = "key.pem"
CERTIFICATE = "certificate.pem"

#: A node whose wall clock is behind must not take the certificate for one of the future, hence the
#: day before; a year after is longer than any walltime.
VALID_BEFORE = timedelta(days=1)
VALID_AFTER = timedelta(days=365)


def make_credentials(directory: Path) -> Security:
    """Make a key and a self-signed certificate for all roles of one run.

    Parameters
    ----------
    directory
        Folder to make, mode 0700; its files ``key.pem`` and ``certificate.pem`` get mode 0600.

    Returns
    -------
    Security
        For the scheduler, the workers (by path) and the client.
    """
    directory.mkdir(mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dasf-hpc run")])
    now = datetime.now(UTC)
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - VALID_BEFORE)
        .not_valid_after(now + VALID_AFTER)
        # It is its own authority: these are what OpenSSL's strict checks ask of one.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=True,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_path, certificate_path = directory / KEY, directory / CERTIFICATE
    _write_private(
        key_path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    _write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    return credentials_in(directory)


def credentials_in(directory: Path) -> Security:
    """Give what Dask wants to know of the credentials that lie, or will lie, in a folder."""
    pair = {
        f"tls_{role}_{part}": str(directory / name)
        for role in ("scheduler", "worker", "client")
        for part, name in (("key", KEY), ("cert", CERTIFICATE))
    }
    return Security(tls_ca_file=str(directory / CERTIFICATE), require_encryption=True, **pair)


def client_environment(security: Security) -> dict[str, str]:
    """Give the variables with which ``Client()`` in a user's script connects to the cluster."""
    return {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": security.tls_ca_file,
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": security.tls_client_cert,
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": security.tls_client_key,
    }


def delete_credentials(directory: Path) -> None:
    """Delete a run's credentials; nothing happens where there are none."""
    shutil.rmtree(directory, ignore_errors=True)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
