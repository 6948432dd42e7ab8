"""Checks of the certificate."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airy_trio.check import check
from tests.application import Application
from tests.certificates import issue


def test_valid_certificate_is_a_note(sqlite_application: Application, tmp_path: Path) -> None:
    files = issue(tmp_path, "a.example", expires=datetime.now(UTC) + timedelta(days=83, hours=1))
    files.key.chmod(0o640)
    report = check(sqlite_application.migrate(f"[listener]\n{files.listener}"))
    assert (report.of("problem"), report.of("warning")) == ((), ())
    assert "listener.tls_certificate: valid for a.example, for 83 more days" in report.of("note")


def test_expired_certificate_is_a_warning(sqlite_application: Application, tmp_path: Path) -> None:
    files = issue(tmp_path, expires=datetime.now(UTC) - timedelta(days=2))
    files.key.chmod(0o600)
    report = check(sqlite_application.migrate(f"[listener]\n{files.listener}"))
    assert report.of("problem") == ()
    [warning] = report.of("warning")
    assert warning.startswith("listener.tls_certificate: the certificate expired on ")
    assert not any("listener" in note for note in report.of("note"))


def test_unusable_files_are_problems(sqlite_application: Application, tmp_path: Path) -> None:
    files = issue(tmp_path)
    files.certificate.unlink()
    files.key.write_text("junk")
    report = check(sqlite_application.migrate(f"[listener]\n{files.listener}"))
    certificate, key = report.of("problem")
    assert certificate.startswith("listener.tls_certificate: ")
    assert key.startswith("listener.tls_key: ")


def test_key_readable_by_all_users_is_a_warning(sqlite_application: Application, tmp_path: Path) -> None:
    files = issue(tmp_path)
    files.key.chmod(0o644)
    report = check(sqlite_application.migrate(f"[listener]\n{files.listener}"))
    assert report.of("warning") == (f"listener.tls_key: {files.key}: every user of this machine can read the key",)
