"""A private authority, and certificates that it signed, for tests of TLS."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def mounted(folder: Path, name: str) -> Certificates:
    """New ones at ``folder/mounted``, in place of those before, as the kubelet replaces them: a link is moved, with all files at once."""
    (folder / name).mkdir()
    files = Certificates(folder / name)
    (folder / "..new").symlink_to(name)
    (folder / "..new").rename(folder / "mounted")
    return files


class Certificates:
    """PEM files in a folder: ``authority``, and a certificate and a key for each of "server" and "client"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.authority = folder / "authority.pem"
        self.authority.write_bytes(self._signed("authority", self._key.public_key(), authority=True))
        for name in ("server", "client"):
            key = ec.generate_private_key(ec.SECP256R1())
            self.certificate(name).write_bytes(self._signed(name, key.public_key()))
            encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            self.key(name).write_bytes(key.private_bytes(*encoding))

    def certificate(self, name: str) -> Path:
        """Where the certificate lies."""
        return self._folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """Where the private key lies."""
        return self._folder / f"{name}.key"

    def _signed(self, name: str, key: ec.EllipticCurvePublicKey, authority: bool = False) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)
