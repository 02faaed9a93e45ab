"""Parts of pages that need no other file: markup, charts, words; what shows a run before and after it."""
