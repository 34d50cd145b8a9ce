"""Renders a report: records in, tables, pictures, page and archive out. Needs neither torch nor the model."""
