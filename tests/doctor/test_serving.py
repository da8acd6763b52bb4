"""Ports that are taken, certificates that are not valid, libraries without Opus, no browser."""

import datetime
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pplex.doctor import serving
from pplex.doctor.findings import OK, PROBLEM, WARNING, Question

x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed: pip install '.[serve]'")

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Certificates = Callable[..., Path]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificates:
    """Writes cert.pem and key.pem, valid from `first` to `last` days from now; `other_key`: the key does not match."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def write(first: float = -1, last: float = 100, other_key: bool = False) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "voice.example")])
        made = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(NOW + first * DAY).not_valid_after(NOW + last * DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("voice.example")]), critical=False)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        kept = ec.generate_private_key(ec.SECP256R1()) if other_key else key
        pem = serialization.Encoding.PEM
        (tmp_path / "cert.pem").write_bytes(made.public_bytes(pem))
        no_password = serialization.NoEncryption()
        (tmp_path / "key.pem").write_bytes(kept.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
        return tmp_path

    return write


class TestPort:
    def test_a_free_port_passes(self) -> None:
        (finding,) = serving.check_port(Question("serve", port=0))
        assert finding.level == OK

    def test_a_port_in_use_is_reported(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            (finding,) = serving.check_port(Question("serve", port=other.getsockname()[1]))
        assert (finding.level, finding.stops) == (PROBLEM, ("serve",)) and "another --port" in str(finding.advice)

    @pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "no-such-host.invalid"])
    def test_a_host_of_another_machine_is_reported(self, host: str) -> None:
        (finding,) = serving.check_port(Question("serve", host=host, port=0))
        assert (finding.level, finding.stops) == (PROBLEM, ("serve",)) and "--host" in str(finding.advice)


class TestCertificate:
    @pytest.mark.parametrize(
        "first, last, level, words",
        [
            (-1, 100, OK, "valid until"), (-1, 5, WARNING, "valid until"), (-9, -1, PROBLEM, "has expired on"),
            (1, 100, PROBLEM, "not valid before"),
        ],
    )  # fmt: skip
    def test_its_dates_are_checked(
        self, certificate: Certificates, first: int, last: int, level: str, words: str
    ) -> None:
        (finding,) = serving.check_certificate(Question("serve", tls_folder=certificate(first, last)))
        assert finding.level == level and words in finding.fact and "voice.example" in finding.fact
        assert finding.stops == (("serve",) if level == PROBLEM else ())

    def test_a_key_of_another_certificate_is_reported(self, certificate: Certificates) -> None:
        (finding,) = serving.check_certificate(Question("serve", tls_folder=certificate(other_key=True)))
        assert (finding.level, finding.stops) == (PROBLEM, ("serve",)) and "belong together" in str(finding.advice)

    def test_a_folder_without_certificate_is_reported(self, tmp_path: Path) -> None:
        (finding,) = serving.check_certificate(Question("serve", tls_folder=tmp_path))
        assert finding.level == PROBLEM and "lacks cert.pem" in finding.fact

    def test_serving_a_network_without_tls_is_a_warning(self) -> None:
        (finding,) = serving.check_certificate(Question("serve", host="0.0.0.0"))
        assert finding.level == WARNING and "microphone" in finding.fact
        assert list(serving.check_certificate(Question("serve"))) == []


def test_installed_audio_libraries_pass() -> None:
    assert [finding.level for finding in serving.check_audio(Question("serve"))] == [OK, OK]


def test_audio_libraries_without_opus_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soundfile.py").write_text(
        "__libsndfile_version__ = '1.0'\ncheck_format = lambda *names: len(names) == 1"
    )
    (tmp_path / "av.py").write_text(
        "__version__ = '14'\nclass codec:\n    def Codec(name, mode): raise ValueError(name)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files, calls = serving.check_audio(Question("serve"))
    assert (files.level, files.stops) == (WARNING, ()) and "without Ogg Opus" in files.fact
    assert (calls.level, calls.stops) == (PROBLEM, ("serve",)) and "without libopus to encode" in calls.fact


class TestBrowser:
    def test_a_missing_browser_is_a_warning(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        (finding,) = serving.check_browser(Question())
        assert (finding.level, finding.stops) == (WARNING, ()) and finding.advice == "apt-get install chromium"

    def test_a_browser_that_does_not_start_is_reported(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "chromium").write_text("#!/no/such/shell\n")
        (tmp_path / "chromium").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        (finding,) = serving.check_browser(Question())
        assert finding.level == WARNING and "does not start" in finding.fact

    def test_is_checked_only_beside_the_tests(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert list(serving.check_browser(Question("serve"))) == []
        monkeypatch.setattr(serving, "TESTS", tmp_path / "tests")
        assert list(serving.check_browser(Question())) == []
