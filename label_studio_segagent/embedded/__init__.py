"""The embedded family: models and tables that ship with the package."""
