"""The engine: the step of a module is traced, compiled and run here, and the state lives here between steps."""
