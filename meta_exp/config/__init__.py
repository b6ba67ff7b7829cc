"""Configs: the constructor is the schema."""
