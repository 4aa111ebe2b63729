"""The log of the operating system: syslog and the Windows event log."""
