"""Plain Python: YAML files to frozen, checked values. Imports nothing of common but errors."""

from common.config.load import Config, config_from_dict, default_config, load_config, replace

__all__ = ["Config", "config_from_dict", "default_config", "load_config", "replace"]
