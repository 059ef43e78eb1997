"""What comes out: the report, and verified LiteRT files."""
