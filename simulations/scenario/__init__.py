"""Everything that a run depends on, as YAML.

`scenario` is the whole, its sections stand beside it; `yaml_source` reads it, `diagnostics` explains what is wrong
with it, `template` writes one to start from.
"""

__all__ = ["diagnostics", "encoder", "renamed", "rounds", "scenario", "section", "students", "template", "yaml_source"]
