"""The results: the report, and verified LiteRT files."""
