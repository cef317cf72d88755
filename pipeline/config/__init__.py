"""The config of a job: YAML read with the line of every key, checked by pydantic models, explained in plain words."""
