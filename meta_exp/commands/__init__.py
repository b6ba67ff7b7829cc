"""The commands: what is typed, sorted and handed on."""
