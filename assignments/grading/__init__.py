"""The grader: a clean server that forks one confined process per test, and a judge outside that knows what is right."""
