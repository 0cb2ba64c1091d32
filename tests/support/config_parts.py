"""Parts of a config for tests."""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def data_config(**fields: Any) -> ConfigDict:
    """The data part of the default config, with other values for some fields."""
    config = default.get_config().data
    config.update(fields)
    return config


def model_config(**fields: Any) -> ConfigDict:
    """The model part of the default config, with other values for some fields."""
    config = default.get_config().model
    config.update(fields)
    return config
