"""Charts, tables and pages of HTML that load nothing."""
