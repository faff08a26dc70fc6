"""Course assignments: their sources, and the tools that hand them out and grade them. See `assignments/README.md`."""
