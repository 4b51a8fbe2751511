"""Plain Python: YAML files to frozen, checked values. Imports nothing of common but errors."""

from common.config.config import Config, dataset_sections
from common.config.load import config_from_dict, default_config, load_config, read_model_config, replace

__all__ = [
    "Config",
    "config_from_dict",
    "dataset_sections",
    "default_config",
    "load_config",
    "read_model_config",
    "replace",
]
