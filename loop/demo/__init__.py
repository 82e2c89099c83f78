"""The demo: its users, screen, report and timeline. Its world is `loop.tasks.world`."""
