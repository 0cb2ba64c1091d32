"""Versions of packages."""

from dualcl_jax.system import versions


def test_a_package_that_is_only_on_the_path_has_no_version(monkeypatch) -> None:
    """Found at the end of a run from a checkout: the summary must still be written."""
    monkeypatch.setattr(versions, 'PACKAGES', ('jax', 'no-such-package'))
    found = versions.versions()
    assert found['no-such-package'] == 'not installed'
    assert found['jax'] != 'not installed'
