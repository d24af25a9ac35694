"""Reports of measurements, as JSON, tables and pages."""
