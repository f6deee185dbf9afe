"""The engine: traces, compiles and runs the steps of a module, and stores the state between steps."""
