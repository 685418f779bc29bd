"""The report of a run: its numbers, its pictures, and the pages that people forward."""
