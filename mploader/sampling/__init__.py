"""Which samples make up batch N of epoch E: pure arithmetic."""
