"""The `grade` command: each verb reads settings, builds, runs."""
