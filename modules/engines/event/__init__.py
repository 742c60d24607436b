"""The event-driven engine for CPUs."""
