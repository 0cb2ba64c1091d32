"""The private interfaces of JAX exist in the installed version; a version that lacks one gives one line."""

import importlib.metadata

import pytest

from dualcl_jax.system import private_jax
from dualcl_jax.system.errors import UserError


@pytest.mark.parametrize('module', private_jax.INTERFACES)
def test_an_interface_exists(module: str) -> None:
    assert private_jax.interface(module) is not None


def test_the_installed_version_is_a_tested_one() -> None:
    """Of a newer one, run the tests of several processes and raise `TESTED`."""
    installed = tuple(int(part) for part in importlib.metadata.version('jax').split('.')[:2])
    first, last = (tuple(int(part) for part in version.split('.')) for version in private_jax.TESTED)
    assert first <= installed <= last


@pytest.mark.parametrize('missing', ['jax._src.nowhere', 'jax.numpy'])
def test_a_version_without_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(private_jax.INTERFACES, missing, 'gone.entirely')
    with pytest.raises(
        UserError, match=r'^jax .*which several processes need; install a version from 0\.10 to'
    ) as said:
        private_jax.interface(missing)
    assert len(str(said.value).splitlines()) == 1


def test_the_service_is_put_back() -> None:
    library = private_jax.interface('jax._src.lib')._jax
    before = library.get_distributed_runtime_service
    with private_jax.coordination_service(print):
        assert library.get_distributed_runtime_service is print
    assert library.get_distributed_runtime_service is before
