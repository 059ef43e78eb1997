"""From scores and limits to a selection: which channels stay."""
