"""Families of tables: tasks whose examples are rows of CSV files."""
