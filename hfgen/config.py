"""Configuration files with the saved names of the static table."""

import json

from diffusers import ConfigMixin as StockConfigMixin

from hfgen.registry import saved_name


class ConfigMixin(StockConfigMixin):
    """diffusers' `ConfigMixin`, except that the saved `_class_name` is the table's and no local path is written."""

    def to_json_string(self) -> str:
        """Return the configuration as JSON, `_class_name` being the name that stock diffusers knows, if any."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = saved_name(type(self).__name__)[1]
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
