"""The one event loop: jobs are sent, their replies kept and written down, their images saved."""
