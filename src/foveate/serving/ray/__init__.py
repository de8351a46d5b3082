"""Many machines: files of questions answered on Ray Data, and servers on Ray Serve. docs/guides/many_machines.md."""
